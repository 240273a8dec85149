"""A manifest survives JSON, and says so when it did not."""

from __future__ import annotations

import ast
import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit_export.artifact.manifest import (
    METADATA_KEY,
    SCHEMA_VERSION,
    Manifest,
    Measurement,
    Stage,
    TensorSpec,
    Weights,
)
from vit_export.artifact.preprocess import CROP_MODES, Preprocess
from vit_export.errors import ArtifactError, ConfigError, UsageError
from vit_export.variants import CHOICES, get_variant

text = st.text(max_size=12)
number = st.floats(allow_nan=False, allow_infinity=False)
size = st.one_of(st.integers(1, 4096), st.sampled_from(["batch_size", "?"]))
specs = st.builds(
    TensorSpec, name=text, dtype=text, shape=st.lists(size, min_size=1, max_size=4).map(tuple)
)
measurements = st.builds(
    Measurement, output=text, batch=st.integers(1, 99), max_abs=number, tolerance=number,
    cosine=number, passed=st.booleans(),
)  # fmt: skip
maybe = st.one_of(st.none(), number)
stages = st.builds(
    Stage, name=text, provider=text, samples=st.integers(0, 99),
    batches=st.lists(st.integers(1, 8), max_size=4).map(tuple), baseline_max_abs=maybe,
    max_abs=maybe, tolerance=maybe, cosine=maybe, top1_agreement=maybe, row_max_abs=maybe,
    passed=st.sampled_from([True, False, None]), reason=text,
    notes=st.lists(text, max_size=2).map(tuple),
    measurements=st.lists(measurements, max_size=2).map(tuple),
)  # fmt: skip
positive = st.floats(1e-3, 9)
preparations = st.integers(1, 4).flatmap(lambda channels: st.builds(
    Preprocess, size=st.tuples(st.integers(1, 999), st.integers(1, 999)),
    crop_pct=st.floats(0.1, 1), mean=st.tuples(*[number] * channels),
    std=st.tuples(*[positive] * channels), color=st.just({1: "L", 3: "RGB"}.get(channels, "")),
    interpolation=st.sampled_from(CHOICES["interpolation"]),
    crop_mode=st.sampled_from(CROP_MODES),
))  # fmt: skip
manifests = st.builds(
    Manifest, variant=text,
    config=st.dictionaries(text, st.one_of(number, text, st.lists(number, max_size=3))),
    weights=st.builds(
        Weights, source=text, layout=text, sha256=text,
        changes=st.lists(text, max_size=2).map(tuple),
    ),
    precision=text, opset=st.integers(1, 30), inputs=st.lists(specs, max_size=2).map(tuple),
    outputs=st.lists(specs, max_size=2).map(tuple),
    preprocess=st.one_of(st.none(), preparations),
    labels=st.lists(text, max_size=4).map(tuple), graph_sha256=text,
    blocks=st.lists(text, max_size=3).map(tuple),
    toolchain=st.dictionaries(text, text, max_size=3),
    certificate=st.lists(stages, max_size=2).map(tuple),
)  # fmt: skip


@given(manifests)
def test_any_manifest_comes_back_from_json_as_it_was(manifest):
    assert Manifest.from_json(manifest.to_json(), source="x") == manifest


def plain(**changes: object) -> Manifest:
    """A small manifest."""
    fields = {
        "variant": "vit",
        "weights": Weights(source="w.safetensors"),
        "opset": 20,
        "inputs": (TensorSpec("pixel_values", "float32", ("batch_size", 3, 32, 48)),),
        "outputs": (TensorSpec("logits", "float32", ("batch_size", 2)),),
        "preprocess": Preprocess(size=(32, 48)),
        "labels": ("it's", 'a "cat"'),
    }
    return Manifest(**{**fields, **changes})


def test_equal_manifests_give_equal_text():
    assert plain().to_json() == plain().to_json()
    assert "\n" not in plain().to_json()


def test_labels_are_stored_without_ascii_escapes():
    assert "猫" in plain(labels=("猫", "犬")).to_json()


def test_a_manifest_of_the_real_export_comes_back(tiny_export):
    manifest = tiny_export.manifest
    back = Manifest.from_json(manifest.to_json(), source="x")
    assert back == manifest
    assert back.passed is True
    assert back.certificate[-1].measurements


def test_a_newer_schema_is_refused_with_what_to_do():
    data = {**json.loads(plain().to_json()), "schema_version": SCHEMA_VERSION + 1}
    with pytest.raises(
        ArtifactError, match=r"model\.onnx.*schema version 2.*\nhint: pip install -U"
    ):
        Manifest.from_json(json.dumps(data), source="model.onnx")


def changed(*place: str | int, value: object) -> str:
    """JSON of a manifest in which one value is replaced or added."""
    data = json.loads(plain(certificate=(stage(True),)).to_json())
    holder = data
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    "place",
    [("later",), ("weights", "later"), ("preprocess", "later"), ("inputs", 0, "later"),
     ("certificate", 0, "later")],
)  # fmt: skip
def test_unknown_fields_are_ignored_at_every_depth(place):
    """A later release of the same schema may add fields anywhere."""
    found = Manifest.from_json(changed(*place, value=1), source="x")
    assert found == plain(certificate=(stage(True),))


@pytest.mark.parametrize(
    ("place", "value", "described"),
    [
        (("opset",), "20", "opset: expected `int`, got `str`"),
        (("preprocess", "size", 0), "28", r"preprocess\.size\[0\]: expected `int`, got `str`"),
        (("preprocess", "std"), [0.5], "std has 1 values for in_chans=3"),
        (("inputs", 0, "shape", 1), 1.5, r"inputs\[0\]\.shape\[1\]: expected `int \| str`"),
        (("certificate", 0, "passed"), "yes", r"certificate\[0\]\.passed: expected `bool \| null`"),
        (("certificate", 0, "hop"), None, r"certificate\[0\]\.hop: expected `str`, got `null`"),
        (("labels", 1), None, r"labels\[1\]: expected `str`, got `null`"),
        (("activation",), "softmin", "activation: invalid enum value 'softmin'"),
    ],
)
def test_a_wrong_field_is_named_with_its_path(place, value, described):
    with pytest.raises(ArtifactError, match=rf"^m\.onnx: .* is damaged: {described}.*\nhint: "):
        Manifest.from_json(changed(*place, value=value), source="m.onnx")


def test_a_newer_schema_names_the_release_that_wrote_it():
    text = plain(toolchain={"vit-export": "0.9.0"}).to_json()
    text = text.replace('"schema_version":1', '"schema_version":2')
    with pytest.raises(ArtifactError, match=r"hint: pip install -U 'vit-export>=0\.9\.0'$"):
        Manifest.from_json(text, source="model.onnx")


def test_scores_are_softmax_unless_the_manifest_names_another_activation():
    """Artifacts of the first release have no such field."""
    data = json.loads(plain().to_json())
    del data["activation"]
    assert Manifest.from_json(json.dumps(data), source="x").activation == "softmax"
    assert Manifest.from_json(changed("activation", value="none"), source="x").activation == "none"


def test_reasons_are_kept_apart_and_also_stored_as_one_text():
    failed = stage(False).replace(reasons=("a; b", "c"))
    (back,) = Manifest.from_json(plain(certificate=(failed,)).to_json(), source="x").certificate
    assert back.reasons == ("a; b", "c")
    assert back.reason == "a; b; c"
    data = json.loads(plain(certificate=(failed,)).to_json())
    del data["certificate"][0]["reasons"]  # as the first release wrote it
    (old,) = Manifest.from_json(json.dumps(data), source="x").certificate
    assert old.reasons == ("a; b; c",)


def test_the_seed_of_random_weights_is_read_from_old_files_too():
    assert Weights(source="random (seed 3)").seed == 3
    assert Weights(source="random (seed 3)").random
    assert not Weights(source="random (seed 3)", sha256="ab").random  # a file of that name
    assert not Weights(source="given module").random


def test_the_config_of_an_artifact_is_read_back():
    config = get_variant("ti16", img_size="32x64", in_chans=1)
    stored = json.loads(json.dumps(dataclasses.asdict(config)))
    manifest = plain(variant=config.variant, config={**stored, "later": 1})
    assert manifest.vit_config("x") == config
    del stored["norm_eps"]
    for damaged, reason in (
        (stored, "the config in its manifest lacks 'norm_eps'"),
        ({}, "its manifest has no config"),
        ({**manifest.config, "depth": "many"}, "the config in its manifest is damaged: cannot set"),
    ):
        with pytest.raises(ArtifactError, match=rf"x\.onnx: {reason}"):
            manifest.replace(config=damaged).vit_config("x.onnx")


@pytest.mark.parametrize(
    "change",
    [{"interpolation": "box"}, {"color": "BGR"}, {"crop_mode": "middle"}, {"crop_pct": 0.0},
     {"size": (0, 16)}, {"mean": (0.5,)}, {"std": (0.5, 0.0, 0.5)}],
)  # fmt: skip
def test_an_impossible_image_preparation_is_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        Preprocess(**{"size": (16, 16), **change})


def test_one_number_for_mean_or_std_counts_for_every_channel():
    preprocess = Preprocess(size=(32, 32), crop_pct=0.5)
    changes = {"mean": "0.25", "std": 2, "interpolation": "nearest"}
    expected = Preprocess(
        size=(32, 32), crop_pct=0.5, mean=(0.25,) * 3, std=(2.0,) * 3, interpolation="nearest"
    )
    assert preprocess.replace(changes) == expected
    config = get_variant("ti16", mean="0.25", std=2)
    assert (config.mean, config.std) == (expected.mean, expected.std)
    with pytest.raises(UsageError, match="cannot change size of the image preparation: only"):
        preprocess.replace({"size": 8})


def without(name: str) -> str:
    """JSON of a manifest that lacks a field."""
    return json.dumps({k: v for k, v in json.loads(plain().to_json()).items() if k != name})


ODD_PREPARATIONS = [
    {"size": 28}, {"size": [28]}, {"size": [28, 28, 1]}, {"size": [28.0, 28.0]},
    {"size": ["28", "28"]}, {"size": "28"}, {"size": [True, True]}, {"size": [0, 28]},
    {"mean": 0.5}, {"mean": ["0.5"] * 3}, {"mean": [0.5]}, {"mean": [math.nan, 0, 0]},
    {"std": None}, {"std": "0.5"}, {"std": [0.5, 0.5]}, {"std": [math.inf] * 3},
    {"crop_pct": "0.9"}, {"crop_pct": None}, {"interpolation": 3}, {"color": None},
    {"crop_mode": ["center"]}, {"crop_mode": "middle"}, {"color": "BGR"}, {"crop_pct": 0},
    {"interpolation": "bicubik"}, {"color": "L"}, {"std": [0.5, 0.5, 0]},
    {"mean": [], "std": [], "color": ""},
]  # fmt: skip


@pytest.mark.parametrize(
    "damaged",
    [
        *(json.dumps({**json.loads(plain().to_json()), "preprocess": {"size": [1, 2], **change}})
          for change in ODD_PREPARATIONS),
        json.dumps({**json.loads(plain().to_json()), "preprocess": {}}),
        json.dumps({**json.loads(plain().to_json()), "labels": [1, 2]}),
        json.dumps({**json.loads(plain().to_json()), "blocks": [None]}),
        "", "{", "[]", "null", "3", '"text"', "{}",
        '{"schema_version": "1"}', '{"schema_version": null}',
        without("weights"), without("inputs"), without("opset"), without("schema_version"),
        plain().to_json()[:200],
        json.dumps({**json.loads(plain().to_json()), "inputs": 3}),
        json.dumps({**json.loads(plain().to_json()), "inputs": [["a"]]}),
        json.dumps({**json.loads(plain().to_json()), "weights": {"nothing": 1}}),
        json.dumps({**json.loads(plain().to_json()), "certificate": [{"hop": "x"}]}),
    ],
)  # fmt: skip
def test_a_damaged_manifest_is_an_error_that_names_the_file(damaged):
    with pytest.raises(ArtifactError, match=r"m\.onnx: its metadata key 'vit_export' is damaged"):
        Manifest.from_json(damaged, source="m.onnx")


def test_plain_metadata_keys_are_those_of_ultralytics():
    metadata = plain().metadata()
    assert list(metadata)[-1] == METADATA_KEY
    assert metadata["task"] == "classify"
    assert json.loads(metadata["imgsz"]) == [32, 48]
    assert ast.literal_eval(metadata["names"]) == {0: "it's", 1: 'a "cat"'}
    assert metadata["batch"] == "1"
    assert Manifest.from_json(metadata[METADATA_KEY], source="x") == plain()


def test_plain_metadata_keys_are_left_out_where_unknown():
    assert set(plain(labels=(), preprocess=None, inputs=()).metadata()) == {"task", METADATA_KEY}


def test_a_fixed_batch_is_in_the_plain_metadata():
    inputs = (TensorSpec("pixel_values", "float32", (4, 3, 32, 32)),)
    assert plain(inputs=inputs).metadata()["batch"] == "4"


def stage(passed: bool | None) -> Stage:
    """A line of a certificate."""
    return Stage(name="x", provider="cpu", samples=8, passed=passed)


def test_the_last_stage_decides_whether_an_artifact_passed():
    assert plain().passed is None
    assert plain(certificate=(stage(False), stage(True))).passed is True
    assert plain(certificate=(stage(True), stage(False))).passed is False
    assert plain(certificate=(stage(True), stage(None))).passed is None


def test_a_changed_copy_leaves_the_original():
    first = plain()
    assert first.replace(graph_sha256="ab").graph_sha256 == "ab"
    assert first.graph_sha256 == ""


@pytest.mark.parametrize(("channels", "color"), [(1, "L"), (3, "RGB"), (4, "")])
def test_the_image_preparation_follows_the_config(channels, color):
    config = get_variant("ti16", in_chans=channels, img_size="32x64", interpolation="lanczos")
    preprocess = Preprocess.of(config)
    assert preprocess.size == (32, 64)
    assert preprocess.color == color
    assert len(preprocess.mean) == len(preprocess.std) == channels
    assert preprocess.interpolation == "lanczos"
    assert math.isclose(preprocess.crop_pct, 0.9)


def test_a_tensor_spec_is_shown_with_dtype_and_shape():
    spec = TensorSpec("x", "float32", ("batch_size", 3))
    assert str(spec) == "x: float32 (batch_size, 3)"
    assert spec.dynamic == ("batch_size",)


def test_the_fixed_batch_of_an_input():
    assert TensorSpec("x", "float32", (4, 3)).fixed_batch == 4
    assert TensorSpec("x", "float32", ("batch_size", 3)).fixed_batch is None
    assert TensorSpec("x", "float32", ()).fixed_batch == 1

"""A model that merges tokens: measured agreement, exported, converted, validated, refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.checkpoint.own import save_checkpoint
from vit_export.cli.main import main
from vit_export.errors import GateError, UsageError
from vit_export.gate.accuracy import read_images
from vit_export.images.prepare import prepare_batch
from vit_export.model.token_merging import merge_tokens
from vit_export.pipeline import source as pipeline_source
from vit_export.pipeline.agreement import FullModelLogits
from vit_export.pipeline.export import ExportResult, export
from vit_export.pipeline.quantize import quantize
from vit_export.pipeline.settings import ExportSettings, ValidateSettings
from vit_export.pipeline.source import load_source, record_golden
from vit_export.pipeline.validate import validate
from vit_export.progress import silent
from vit_export.quantization.settings import QuantizeSettings
from vit_export.runtime import load

PAIRS = 4
AGREEMENT = "full model -> merged tokens"


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Twelve pictures of noise in folders named after two classes."""
    folder, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(12):
        path = folder / f"name {i % 2}" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        small = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize((32, 32)).save(path)
    return folder


@pytest.fixture(scope="session")
def settings(pictures) -> ExportSettings:
    return ExportSettings(
        merge_tokens=PAIRS, images=pictures, labels=tuple(f"name {i}" for i in range(10))
    )


@pytest.fixture(scope="session")
def weights(make_model, tmp_path_factory) -> Path:
    """A checkpoint of the tiny model."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_checkpoint(make_model(), path)
    return path


@pytest.fixture(scope="session")
def merged(weights, settings, tmp_path_factory) -> ExportResult:
    """The tiny model with four pairs merged a block; tests must not change the files."""
    path = tmp_path_factory.mktemp("merged") / "tiny.onnx"
    return export(None, path, weights=weights, settings=settings)


def logits(model: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(images)).numpy()


def test_the_certificate_states_the_agreement_on_real_images(merged, make_model, pictures) -> None:
    """With what torch computes for them, both ways; it has neither passed nor failed."""
    line = next(s for s in merged.manifest.certificate if s.name == AGREEMENT)
    assert line.passed is None
    assert "no tolerance applies" in line.reason
    assert line.real_images == line.samples == 12
    images = prepare_batch(sorted(pictures.rglob("*.png")), merged.manifest.preprocess)
    model = make_model()
    full, ours = logits(model, images), logits(merge_tokens(model, PAIRS), images)
    assert line.real_agreement == pytest.approx((full.argmax(1) == ours.argmax(1)).mean())
    targets = np.repeat([0, 1], 6)
    right, before = (100 * (x.argmax(1) == targets).mean() for x in (ours, full))
    assert line.accuracy_drop == pytest.approx(before - right)
    norms = np.linalg.norm(full, axis=1) * np.linalg.norm(ours, axis=1)
    cosine = ((full * ours).sum(1) / norms).min()
    assert line.cosine == pytest.approx(cosine, abs=1e-6)
    assert line.cosine < 1 - 1e-5
    assert f"at least {line.cosine:.4f}" in line.notes[0]


def test_classes_that_differ_are_counted(merged, pictures) -> None:
    """Of a full model that agrees on nine of twelve images, and is right where it does not."""
    manifest = merged.manifest
    images = read_images(pictures, manifest.preprocess, manifest.labels)
    with load(merged.path, provider="cpu") as model:
        classes = np.array([top[0].index for top in model.classify(list(images.images), top=1)])
    others = classes.copy()
    others[6:9] = images.targets[6:9]
    assert (others != classes).sum() == 3
    full = FullModelLogits(images, np.eye(10, dtype=np.float32)[others])
    line = full.compare(OnnxFile.read(merged.path), manifest, 14, silent)
    assert line.real_agreement == 0.75
    assert line.accuracy_drop == pytest.approx(25)
    assert "top-1 agrees on 75.00 %" in line.notes[0]
    assert "2 of 16 golden images are left out" in line.notes[1]


def test_logits_that_are_not_finite_are_refused(merged, pictures) -> None:
    """Of either model: their classes would mean nothing."""
    images = read_images(pictures, merged.manifest.preprocess, [])
    full = FullModelLogits(images, np.full((12, 10), np.nan, np.float32))
    with pytest.raises(GateError, match="the full model gives NaN or infinite logits for 12 of 12"):
        full.compare(OnnxFile.read(merged.path), merged.manifest, 16, silent)


def test_the_gate_compares_with_the_model_that_merges(merged) -> None:
    """It is as exact as any export, and the last line is the verdict."""
    names = [stage.name for stage in merged.manifest.certificate]
    assert names == ["torch -> onnx", AGREEMENT, "onnx -> simplified"]
    assert merged.manifest.passed is True
    assert merged.comparison.stage.max_abs <= merged.comparison.stage.tolerance < 1e-4
    assert merged.manifest.token_merging.per_block == PAIRS
    assert merged.manifest.token_merging.tokens == (17, 13, 9)


def test_the_graph_has_static_shapes_and_neither_scatter_nor_loop(merged) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(merged.path), strict_mode=True)
    operators = {node.op_type for node in model.graph.node}
    assert operators & {"TopK", "CumSum"}
    dynamic = {"Scatter", "ScatterElements", "ScatterND", "Gather", "Loop", "NonZero", "Shape"}
    assert not operators & dynamic
    for value in model.graph.value_info:
        sizes = [size.dim_value or size.dim_param for size in value.type.tensor_type.shape.dim]
        assert sum(isinstance(size, str) for size in sizes) <= 1, value.name  # the batch


def test_each_image_merges_its_own_tokens(merged, pictures) -> None:
    """Whatever stands beside it in the batch."""
    files = sorted(pictures.rglob("*.png"))
    with load(merged.path, provider="cpu") as model:
        together, alone = model.classify(files, top=10), [model.classify(f, top=10) for f in files]
    for ours, theirs in zip(together, alone, strict=True):
        scores = {p.label: p.score for p in theirs}
        assert {p.label: p.score for p in ours} == pytest.approx(scores, abs=1e-5)


def _drop_sizes(node: onnx.NodeProto) -> None:
    """Attention as if every token were of size 1: log(size) - log(size)."""
    node.op_type = "Sub"
    node.input.append(node.input[0])


def _take_the_worst_partner(node: onnx.NodeProto) -> None:
    node.op_type = "ArgMin"


def _merge_the_least_similar(node: onnx.NodeProto) -> None:
    next(attribute for attribute in node.attribute if attribute.name == "largest").i = 0


def _keep_sums(node: onnx.NodeProto) -> None:
    """Merged tokens are not divided by their sizes."""
    node.op_type = "Identity"
    del node.input[1]


@pytest.mark.parametrize(
    ("operator", "damage"),
    [
        ("Log", _drop_sizes),
        ("ArgMax", _take_the_worst_partner),
        ("TopK", _merge_the_least_similar),
        ("Div", _keep_sums),
    ],
)
def test_a_mistake_in_one_block_is_refused_and_found(merged, tmp_path, operator, damage) -> None:
    """The first block has no sizes yet, so that the second one is damaged."""
    model = onnx.load(merged.path)
    nodes = [n for n in model.graph.node if n.op_type == operator and "blocks.1" in n.name]
    assert len(nodes) == 1
    damage(nodes[0])
    path = tmp_path / "damaged.onnx"
    onnx.save(model, path)
    stage = validate(path, settings=ValidateSettings(golden=merged.golden, provider="cpu")).stage
    assert stage.passed is False
    assert any("first tensor outside its tolerance: blocks.1" in r for r in stage.reasons)


@pytest.mark.slow
@pytest.mark.parametrize("change", [
    {"batch": 2, "simplify": False, "outputs": ("logits", "features")},
    {"embed_preprocess": True},
])  # fmt: skip
def test_other_settings_work_together_with_it(make_model, settings, tmp_path, change) -> None:
    changed = dataclasses.replace(settings, **change)
    result = export(make_model(), tmp_path / "m.onnx", settings=changed)
    assert result.manifest.passed
    assert any(s.name == AGREEMENT and s.real_images == 12 for s in result.manifest.certificate)
    assert validate(result.path, settings=ValidateSettings(provider="cpu")).passed


@pytest.mark.slow
@pytest.mark.parametrize("fields", [
    {"distilled": True},
    {"img_size": (8, 104), "qkv_bias": False, "pos_embed": "sincos"},
])  # fmt: skip
def test_other_models_merge_too(make_model, settings, tmp_path, fields) -> None:
    result = export(make_model(**fields), tmp_path / "m.onnx", settings=settings)
    assert result.manifest.passed


def test_the_reference_is_computed_again_with_the_same_number_of_pairs(
    merged, weights, tmp_path
) -> None:
    path = tmp_path / "m.onnx"
    content = merged.path.read_bytes()
    path.write_bytes(content)
    again = ValidateSettings(weights=weights, provider="cpu")
    assert validate(path, settings=again).passed
    assert content.count(b'"per_block":4') == 1
    path.write_bytes(content.replace(b'"per_block":4', b'"per_block":3'))
    assert validate(path, settings=again).passed is False


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_conversion_is_measured_and_keeps_the_statement(merged, tmp_path, precision) -> None:
    """The full model's agreement stays in the certificate of the file that is written."""
    settings = QuantizeSettings(precision=precision)
    result = quantize(merged.path, tmp_path / "narrow.onnx", settings=settings)
    manifest = OnnxFile.read(result.path).manifest
    assert manifest.passed is True
    assert AGREEMENT in [stage.name for stage in manifest.certificate]
    assert manifest.token_merging == merged.manifest.token_merging
    with load(result.path, provider="cpu") as model:
        assert model.classify(np.zeros((32, 32, 3), np.uint8))


def call(*arguments: str | Path) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return done.exit_code, done.stdout, done.stderr


def test_a_person_reads_that_the_outputs_are_not_those_of_the_full_model(merged) -> None:
    code, text, _ = call("inspect", merged.path)
    assert code == 0
    assert "merges tokens" in text
    assert (
        "4 pairs a block, 17 tokens become 9: its outputs are not those of the full model" in text
    )
    assert f"{AGREEMENT}: 12 real images: top-1 agrees on" in text
    data = json.loads(call("inspect", merged.path, "--json")[1].splitlines()[-1])
    assert data["manifest"]["token_merging"] == {"per_block": 4, "tokens": [17, 13, 9]}


def test_the_command_refuses_it_without_images_before_any_work(tmp_path) -> None:
    """Nothing would show what it costs."""
    path = tmp_path / "m.onnx"
    code, _, error = call("onnx", "--variant", "ti16", "--merge-tokens", "4", "-o", path)
    assert code == 2
    assert "--merge-tokens needs --images PATH" in error
    assert not path.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"merge_tokens": 0}, "expected a number from 1 to 5"),
        ({"merge_tokens": -3}, "expected a number from 1 to 5"),
        ({"merge_tokens": 6}, "expected a number from 1 to 5"),
        ({"outputs": ("logits", "tokens")}, "--outputs tokens: with --merge-tokens"),
        ({"outputs": ("features",)}, "--merge-tokens needs logits"),
        ({"attention": "op"}, "takes no bias of that shape"),
        ({"dynamic_size": True}, "--merge-tokens needs a fixed image size"),
        ({"images": None}, "--merge-tokens needs --images"),
    ],
)
def test_what_cannot_be_merged_is_refused(make_model, settings, tmp_path, change, message) -> None:
    with pytest.raises(UsageError, match=message):
        export(
            make_model(),
            tmp_path / "m.onnx",
            settings=dataclasses.replace(settings, **change),
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"global_pool": "avg"}, "the head reads patches"),
        ({"num_classes": 0}, "expected at least 2"),
        ({"num_classes": 1}, "expected at least 2"),
    ],
)
def test_models_that_cannot_merge_are_refused(make_model, settings, fields, message) -> None:
    with pytest.raises(UsageError, match=message):
        load_source(make_model(**fields), settings=dataclasses.replace(settings, labels=()))


def test_a_module_merges_its_tokens_itself(settings) -> None:
    with pytest.raises(UsageError, match="--merge-tokens is for named variants"):
        load_source(torch.nn.Flatten(), settings=settings)


def test_golden_images_that_are_nearly_ties_are_left_out(make_model, settings, monkeypatch) -> None:
    """The export is measured on the others, where there are three."""
    loaded = load_source(make_model(), settings=settings)
    whole = record_golden(loaded, settings.images, silent)
    assert whole.samples == 16

    def unstable(number):
        def without(model, images):
            return np.arange(len(images)) >= number

        monkeypatch.setattr(pipeline_source, "without_near_ties", without)

    unstable(13)
    some = record_golden(loaded, settings.images, silent)
    assert np.array_equal(some.images, whole.images[13:])
    unstable(14)
    with pytest.raises(GateError, match="on 14 of 16 golden images rounding to float32 can change"):
        record_golden(loaded, settings.images, silent)

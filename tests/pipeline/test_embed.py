"""An artifact that prepares images itself: exported, converted, validated, refused where wrong."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from vit_export.artifact.golden import golden_path
from vit_export.artifact.manifest import Manifest, Stage
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.onnx_writer import stamp
from vit_export.engine.network import check_source
from vit_export.errors import EngineError, GateError, UsageError
from vit_export.graph import embed as graph_embed
from vit_export.pipeline.embed import pack_embedded
from vit_export.pipeline.export import ExportResult, export
from vit_export.pipeline.quantize import quantize
from vit_export.pipeline.settings import ExportSettings, ValidateSettings
from vit_export.pipeline.validate import validate
from vit_export.progress import silent
from vit_export.quantization.settings import QuantizeSettings
from vit_export.runtime import load

EMBEDDED = ExportSettings(labels=tuple(f"name {i}" for i in range(10)), embed_preprocess=True)
SCORES = ["probabilities", "top_index", "top_score"]


@pytest.fixture(scope="module")
def embedded(exported: Callable[..., ExportResult]) -> ExportResult:
    """The tiny model with its image preparation; tests must not change the files."""
    return exported(settings=EMBEDDED)


def copied(result: ExportResult, folder: Path) -> Path:
    """Return a copy of an artifact with its golden file."""
    for file in result.files:
        shutil.copy(file, folder)
    return folder / result.path.name


def test_one_file_takes_photographs_and_gives_scores(embedded, photographs) -> None:
    """With ONNX Runtime alone, as a C++ program runs it."""
    from PIL import Image

    session = ort.InferenceSession(embedded.path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert (given.name, given.type) == ("image", "tensor(uint8)")
    assert given.shape == ["batch_size", "image_height", "image_width", 3]
    assert [output.name for output in session.get_outputs()] == ["logits", *SCORES]
    image = np.stack([np.asarray(Image.open(photo)) for photo in photographs])
    logits, probabilities, index, score = session.run(None, {"image": image})
    assert probabilities.sum(axis=1) == pytest.approx(1)
    assert index.dtype == np.int64
    assert index.shape == score.shape == (2, 5)
    np.testing.assert_array_equal(index[:, 0], logits.argmax(axis=1))
    np.testing.assert_array_equal(score, np.sort(probabilities)[:, :-6:-1])


def test_the_manifest_says_that_the_graph_prepares_images(embedded, tiny_export) -> None:
    manifest = OnnxFile.read(embedded.path).manifest
    assert manifest.embedded
    assert manifest.resize == "op"
    assert [str(spec) for spec in manifest.inputs] == [
        "image: uint8 (batch_size, image_height, image_width, 3)"
    ]
    assert [str(spec) for spec in manifest.outputs] == [
        "logits: float32 (batch_size, 10)", "probabilities: float32 (batch_size, 10)",
        "top_index: int64 (batch_size, 5)", "top_score: float32 (batch_size, 5)",
    ]  # fmt: skip
    assert manifest.preprocess == tiny_export.manifest.preprocess
    assert not tiny_export.manifest.embedded


def test_the_certificate_has_a_line_for_the_preparation(embedded) -> None:
    names = [stage.name for stage in embedded.manifest.certificate]
    assert names == ["torch -> onnx", "onnx -> simplified, image preparation", "onnx -> simplified"]
    line = embedded.manifest.certificate[1]
    assert line.passed
    assert line.samples == 40
    assert line.measurements[0].output == "pixel_values"


def test_the_golden_file_is_that_of_the_plain_export(embedded, tiny_export) -> None:
    assert embedded.golden.read_bytes() == tiny_export.golden.read_bytes()


def test_the_file_is_the_same_each_time(embedded, make_model, tmp_path) -> None:
    again = export(make_model(), tmp_path / "tiny.onnx", settings=EMBEDDED)
    assert again.path.read_bytes() == embedded.path.read_bytes()


def test_onnx_accepts_the_file(embedded) -> None:
    onnx.checker.check_model(onnx.load(embedded.path), full_check=True)


@pytest.mark.parametrize("images", ["photograph", "files", "mixed"])
def test_predictions_are_those_of_the_plain_file(
    embedded, tiny_export, photographs, images
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (50, 20, 3), dtype=np.uint8)
    mixed = [photographs[0], noise, photographs[1], noise[:, :, 0], noise]
    given = {"photograph": photographs[0], "files": photographs, "mixed": mixed}[images]
    with load(embedded.path, provider="cpu") as model, load(tiny_export.path) as plain:
        found, expected = (m.classify(given, top=10) for m in (model, plain))
        features = [m.embed(given) for m in (model, plain)]
    if images == "photograph":
        found, expected = [found], [expected]
    for ours, theirs in zip(found, expected, strict=True):
        scores = {p.label: p.score for p in theirs}
        assert {p.label: p.score for p in ours} == pytest.approx(scores, abs=1e-3)
    np.testing.assert_allclose(*features, atol=2e-2)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "int8-static"])
def test_a_conversion_prepares_images_too(embedded, tmp_path, photographs, precision) -> None:
    """The gate of the network comes first, then those of the file that is written."""
    images = photographs[0].parent if precision == "int8-static" else None
    settings = QuantizeSettings(precision=precision, calibration=images)
    result = quantize(embedded.path, tmp_path / "narrow.onnx", settings=settings)
    manifest = OnnxFile.read(result.path).manifest
    assert manifest.embedded
    assert manifest.precision == precision
    names = [stage.name for stage in manifest.certificate]
    assert names[-2:] == [
        f"fp32 -> {precision}, image preparation",
        f"fp32 -> {precision}, embedded",
    ]
    assert manifest.certificate[-2].passed is True
    assert manifest.passed is (None if precision == "bf16" else True)
    assert manifest.certificate[-1].accuracy == "unmeasured"
    OnnxFile.read(result.path).check_certified()
    if precision != "bf16":
        assert validate(result.path, settings=ValidateSettings(provider="cpu")).passed


def test_a_conversion_in_one_step_is_that_of_two(embedded, make_model, tmp_path) -> None:
    narrow = QuantizeSettings(precision="int8")
    settings = ExportSettings(labels=EMBEDDED.labels, embed_preprocess=True, quantize=narrow)
    one = export(make_model(), tmp_path / "one.onnx", settings=settings)
    two = quantize(embedded.path, tmp_path / "two.onnx", settings=narrow)
    assert OnnxFile.read(one.path).graph_sha256() == OnnxFile.read(two.path).graph_sha256()
    assert one.manifest.replace(toolchain={}) == two.manifest.replace(toolchain={})


def test_float16_input_and_outputs_keep_float32_scores(embedded, tmp_path, photographs) -> None:
    settings = QuantizeSettings(precision="fp16", half_io=True)
    result = quantize(embedded.path, tmp_path / "half.onnx", settings=settings)
    dtypes = {spec.name: spec.dtype for spec in result.manifest.outputs}
    assert dtypes == {"logits": "float16", "probabilities": "float32", "top_index": "int64",
                      "top_score": "float32"}  # fmt: skip
    assert load(result.path, provider="cpu").classify(photographs[0])


def joined(
    plain: ExportResult, folder: Path, *, resize: str = "op", **fields: object
) -> tuple[OnnxFile, Manifest, Stage]:
    """Embed the preparation of a plain artifact, without an export of its own."""
    path = folder / "joined.onnx"
    packed, manifest, line = pack_embedded(
        OnnxFile.read(plain.path), path, plain.manifest.replace(**fields), resize=resize,
        scratch=folder, stage="test", external_data=False, progress=silent,
    )  # fmt: skip
    stamp(path, manifest.replace(graph_sha256=packed.graph_sha256()).metadata())
    shutil.copy(plain.golden, golden_path(path))
    return OnnxFile.read(path), manifest, line


@pytest.mark.parametrize(
    ("fields", "resize", "other"),
    [
        ({"in_chans": 1, "mean": 0.5, "std": 0.5, "num_classes": 3}, "matmul", "op"),
        ({"img_size": (32, 48), "interpolation": "bilinear", "num_classes": 0}, "op", "matmul"),
    ],
)
def test_models_of_every_kind(exported, photographs, tmp_path, fields, resize, other) -> None:
    """Grey images and few classes; an oblong input and no classes; both forms of resizing."""
    settings = ExportSettings(embed_preprocess=True, resize=resize)
    result = exported(settings=settings, **fields)
    names = [spec.name for spec in result.manifest.outputs]
    with load(result.path, provider="cpu") as model:
        features = model.embed(photographs)
        if fields["num_classes"]:
            assert names == ["logits", *SCORES]
            assert result.manifest.outputs[2].shape == ("batch_size", 3)
            assert len(model.classify(photographs[0], top=99)) == 3
        else:
            assert names == ["features"]
    network = tmp_path / "network.onnx"
    plain = graph_embed.take_off_preparation(result.path, network, result.manifest)
    same = dataclasses.replace(result, path=network, manifest=plain)
    file, _, line = joined(same, tmp_path, resize=other)
    assert line.passed
    with load(file.path, provider="cpu") as model:
        np.testing.assert_allclose(model.embed(photographs), features, atol=2e-2)


def test_a_fixed_batch_and_further_outputs(exported, photographs) -> None:
    settings = ExportSettings(embed_preprocess=True, batch=2, outputs=("logits", "features"))
    result = exported(settings=settings)
    assert [spec.name for spec in result.manifest.outputs] == ["logits", "features", *SCORES]
    with load(result.path, provider="cpu") as model:
        assert len(model.classify([*photographs, photographs[0]])) == 3
    assert validate(result.path, settings=ValidateSettings(provider="cpu")).passed


@pytest.mark.parametrize("activation", ["sigmoid", "none"])
def test_scores_follow_the_activation(tiny_export, tmp_path, activation) -> None:
    file, _, _ = joined(tiny_export, tmp_path, activation=activation)
    with load(file.path, provider="cpu") as model:
        outputs = model(np.zeros((1, 40, 40, 3), np.uint8))
    expected = outputs["logits"]
    if activation == "sigmoid":
        expected = 1 / (1 + np.exp(-expected))
    np.testing.assert_allclose(outputs["probabilities"], expected, rtol=1e-6)


def test_lanczos_is_refused_before_the_export_begins(make_model, tmp_path) -> None:
    settings = ExportSettings(embed_preprocess=True)
    steps: list[str] = []
    with pytest.raises(UsageError, match="lanczos"):
        export(make_model(interpolation="lanczos"), tmp_path / "a.onnx", settings=settings,
               progress=lambda stage, *_: steps.append(stage))  # fmt: skip
    assert steps == ["load the model"]
    assert list(tmp_path.iterdir()) == []


def test_a_dynamic_size_cannot_be_prepared_for() -> None:
    with pytest.raises(UsageError, match="takes many"):
        ExportSettings(embed_preprocess=True, dynamic_size=True)


def test_a_graph_that_prepares_images_wrongly_is_refused(
    tiny_export, tmp_path, monkeypatch
) -> None:
    right = graph_embed.preparation

    def wrong(image, preprocess, resize):
        return right(image, preprocess.replace({"mean": 0.4}), resize)

    monkeypatch.setattr(graph_embed, "preparation", wrong)
    with pytest.raises(GateError, match=r"image preparation: .*a pixel differs"):
        joined(tiny_export, tmp_path)


def test_a_graph_with_wrong_scores_is_refused(tiny_export, tmp_path, monkeypatch) -> None:
    right = graph_embed._scores

    def wrong(graph, logits, spec, activation):
        return right(graph, logits, spec, "sigmoid")

    monkeypatch.setattr(graph_embed, "_scores", wrong)
    file, _, _ = joined(tiny_export, tmp_path)
    result = validate(file.path, settings=ValidateSettings(provider="cpu"))
    assert "probabilities are off" in result.stage.reason


def test_validate_finds_a_changed_preparation(embedded, tmp_path) -> None:
    """Where the network is right, and so its hash alone would not be enough."""
    path = copied(embedded, tmp_path)
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if (
            tensor.name.startswith("preprocess/")
            and values.dtype == np.float32
            and values.size == 3
        ):
            tensor.CopyFrom(numpy_helper.from_array(values * np.float32(1.02), tensor.name))
    del model.metadata_props[:]
    onnx.save(model, path)
    manifest = embedded.manifest
    stamp(path, manifest.replace(graph_sha256=OnnxFile.read(path).graph_sha256()).metadata())
    result = validate(path, settings=ValidateSettings(provider="cpu"))
    assert result.passed is False
    assert "px, " in result.stage.reason


def test_validate_measures_the_preparation_again(embedded) -> None:
    result = validate(embedded.path, settings=ValidateSettings(provider="cpu"))
    assert result.passed
    assert result.stage.measurements[0].output == "pixel_values"


def test_an_engine_of_it_is_refused(embedded) -> None:
    with pytest.raises(EngineError, match="any size") as caught:
        check_source(OnnxFile.read(embedded.path))
    assert "--preprocess none" in caught.value.hint


def test_it_is_not_embedded_twice(embedded, tmp_path) -> None:
    with pytest.raises(UsageError, match="expected one input pixel_values"):
        graph_embed.embed_preparation(
            embedded.path, tmp_path / "twice.onnx", embedded.manifest, "op"
        )


def test_its_network_is_that_of_the_plain_file(embedded, tiny_export, tmp_path) -> None:
    path = tmp_path / "network.onnx"
    manifest = graph_embed.take_off_preparation(embedded.path, path, embedded.manifest)
    assert manifest.inputs == tiny_export.manifest.inputs
    assert manifest.outputs == tiny_export.manifest.outputs
    assert not manifest.resize
    found, plain = OnnxFile.read(path), OnnxFile.read(tiny_export.path)
    assert found.nodes == plain.nodes
    constants = [{t.name: t.nbytes for t in file.initializers} for file in (found, plain)]
    assert constants[0] == constants[1]


def test_its_preparation_cannot_be_changed_at_load(embedded) -> None:
    other = embedded.manifest.preprocess.replace({"mean": 0.4})
    with pytest.raises(UsageError, match="prepares images itself"):
        load(embedded.path, provider="cpu", preprocess=other)
    assert load(embedded.path, provider="cpu", preprocess=embedded.manifest.preprocess)

"""An fp32 artifact is converted, measured, repaired where that helps, and refused otherwise."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from PIL import Image

from vit_export.artifact.golden import Golden, golden_path
from vit_export.artifact.manifest import Weights
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.cli.report.results import quantize_text
from vit_export.errors import ArtifactError, GateError, OutputError, UsageError
from vit_export.gate.validate import compare
from vit_export.graph.half.convert import to_half
from vit_export.graph.half.emulate import to_rounded
from vit_export.graph.layers import converted_nodes
from vit_export.pipeline.export import export
from vit_export.pipeline.quantize import quantize
from vit_export.quantization.settings import QuantizeSettings
from vit_export.runtime import load
from vit_export.runtime.onnxruntime.runner import OrtRunner

FP16, BF16 = QuantizeSettings(precision="fp16"), QuantizeSettings(precision="bf16")


@pytest.fixture(scope="module")
def fp16(tiny_export, tmp_path_factory):
    """The tiny artifact in FP16; tests must not change it."""
    folder = tmp_path_factory.mktemp("fp16")
    return quantize(tiny_export.path, folder / "tiny.fp16.onnx", settings=FP16)


def test_the_certificate_of_fp16_has_two_stages_and_counts_the_nodes(tiny_export, fp16):
    """With every operation rounded, and as the file runs on this CPU."""
    manifest = OnnxFile.read(fp16.path).manifest
    assert manifest.precision == "fp16"
    assert manifest.passed is True
    stages = [stage.name for stage in manifest.certificate]
    assert stages[-2:] == ["fp32 -> fp16, every operation rounded", "fp32 -> fp16"]
    assert stages[:-2] == [stage.name for stage in tiny_export.manifest.certificate]
    assert manifest.conversion.planned == manifest.conversion.narrowed == 15
    assert manifest.conversion.kept == ()
    assert manifest.conversion.source_sha256 == tiny_export.manifest.graph_sha256
    assert manifest.certificate[-1].accuracy == "unmeasured"
    assert converted_nodes(OnnxFile.read(fp16.path)) == 15
    names = {path.name for path in fp16.path.parent.iterdir()}
    assert names == {"tiny.fp16.golden.npz", "tiny.fp16.onnx"}
    assert fp16.size_bytes == fp16.path.stat().st_size
    assert fp16.golden.read_bytes() == tiny_export.golden.read_bytes()


def test_the_tolerance_depends_on_torchs_own_float16(tiny_export, fp16):
    """Twice its error, and at most 1e-2 of the largest value."""
    golden = Golden.read(tiny_export.golden)
    largest = np.abs(golden.outputs["logits"]).max()
    expected = min(2 * golden.e16["logits"], 1e-2 * largest)
    for stage in fp16.manifest.certificate[-2:]:
        assert stage.tolerance == expected
        assert stage.baseline_max_abs == golden.e16["logits"]
        assert 0 < stage.max_abs <= expected


def test_an_fp16_artifact_validates_and_predicts(tiny_export, fp16):
    """With its own tolerance, from the golden file beside it."""
    comparison = compare(OrtRunner(fp16.path), Golden.read(fp16.golden))
    assert comparison.passed
    assert comparison.stage.tolerance == fp16.comparison.stage.tolerance
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    wide, narrow = (load(made.path, provider="cpu") for made in (tiny_export, fp16))
    for image in images:
        assert narrow.classify(image, top=1)[0].index == wide.classify(image, top=1)[0].index


def test_the_same_source_gives_the_same_file(tiny_export, fp16, tmp_path):
    """To the byte, in another folder."""
    again = quantize(tiny_export.path, tmp_path / fp16.path.name, settings=FP16)
    assert again.path.read_bytes() == fp16.path.read_bytes()


def test_an_engines_golden_file_is_not_replaced(tiny_export, make_model, tmp_path):
    """By `quantize` or `export`; the engine has the same stem, and belongs to another model."""
    files = {"b.engine": b"plan", "b.golden.npz": b"another golden file"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for attempt in (
        lambda: quantize(tiny_export.path, tmp_path / "b.onnx", settings=FP16),
        lambda: export(make_model(depth=1), tmp_path / "b.onnx"),
    ):
        with pytest.raises(OutputError, match=r"b\.golden\.npz, which b\.engine"):
            attempt()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_an_artifact_with_float16_inputs_classifies_images(tiny_export, tmp_path):
    """`classify` converts the pixels."""
    settings = dataclasses.replace(FP16, half_io=True)
    made = quantize(tiny_export.path, tmp_path / "half.onnx", settings=settings)
    assert [str(spec.dtype) for spec in made.manifest.inputs] == ["float16"]
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    top = load(made.path, provider="cpu").classify(image, top=1)
    assert top[0].index == load(tiny_export.path, provider="cpu").classify(image, top=1)[0].index
    assert compare(OrtRunner(made.path), Golden.read(made.golden)).passed


def test_bf16_without_a_gpu_has_neither_passed_nor_failed(tiny_export, tmp_path):
    """ONNX Runtime's CPU has no kernels for it; the rounded form was measured."""
    made = quantize(tiny_export.path, tmp_path / "half.onnx", settings=BF16)
    rounded, last = made.manifest.certificate[-2:]
    assert rounded.passed is True
    assert 0 < rounded.max_abs <= rounded.tolerance
    assert last.passed is None
    assert "no bfloat16 kernels" in last.reason
    assert OnnxFile.read(made.path).manifest.passed is None
    assert quantize_text(made).endswith(f"validate {made.path} --trace    (on a GPU)")
    with pytest.raises(ArtifactError, match=r"\nhint: .*no kernels for bfloat16"):
        load(made.path, provider="cpu")


def test_a_massive_activation_makes_recipe_all_fail(massive_product, tmp_path):
    """The gate finds NaN where a GPU rounds, and `quantize` refuses before converting."""
    to_half(massive_product.path, tmp_path / "all.onnx", recipe="all")
    to_rounded(tmp_path / "all.onnx", tmp_path / "rounded.onnx")
    golden = Golden.read(massive_product.golden)
    manifest = massive_product.manifest.replace(precision="fp16")
    broken = compare(OrtRunner(tmp_path / "rounded.onnx"), golden, manifest=manifest)
    assert not broken.passed
    assert "NaN or infinite" in broken.stage.reason
    assert re.search(r"outside its tolerance: blocks\.[12] ", broken.stage.reason)
    settings = dataclasses.replace(FP16, recipe="all")
    message = r"tiny\.onnx: .*reaches 7\.\d+e\+04 \(first at blocks\.1[\s\S]*hint: leave"
    with pytest.raises(GateError, match=message):
        quantize(massive_product.path, tmp_path / "x.onnx", settings=settings)
    assert not (tmp_path / "x.onnx").exists()


def test_a_massive_activation_is_repaired_by_one_layer(massive_product, tmp_path):
    """The certificate names the layer that stays fp32, and why."""
    made = quantize(massive_product.path, tmp_path / "half.onnx", settings=FP16)
    assert made.manifest.passed is True
    (kept,) = made.manifest.conversion.kept
    assert (kept.layer, kept.precision) == ("blocks.1.mlp.fc2", "fp32")
    assert kept.reason == "alone in fp16 it makes the result NaN or infinite"
    assert [s.unit for s in made.blocks if s.error_ratio > 1] == ["blocks.1"]
    assert [s.unit for s in made.layers if s.error_ratio > 1] == ["blocks.1.mlp.fc2"]
    assert made.manifest.conversion.narrowed == made.manifest.conversion.planned - 1
    assert any("torch float16 itself overflows" in note for note in made.comparison.stage.notes)


def test_the_cpu_alone_would_pass_an_overflow(massive_product, tmp_path):
    """Which is why every operation is rounded in the first stage."""
    to_half(massive_product.path, tmp_path / "half.onnx")
    to_rounded(tmp_path / "half.onnx", tmp_path / "rounded.onnx")
    golden = Golden.read(massive_product.golden)
    manifest = massive_product.manifest.replace(precision="fp16")
    passed = [
        compare(OrtRunner(tmp_path / name), golden, manifest=manifest).passed
        for name in ("half.onnx", "rounded.onnx")
    ]
    assert passed == [True, False]


def test_a_bias_beyond_float16_stays_fp32_without_a_search(massive_bias, tmp_path):
    """The conversion itself keeps the layer."""
    made = quantize(massive_bias.path, tmp_path / "half.onnx", settings=FP16)
    (kept,) = made.manifest.conversion.kept
    assert kept.layer == "blocks.1.mlp.fc2"
    assert "exceed 65504" in kept.reason
    assert made.blocks == ()


def test_a_repair_beyond_the_budget_is_refused(massive_bias, tmp_path):
    """The error names the layers and the budget that would do; nothing is written."""
    settings = dataclasses.replace(FP16, budget=0.01)
    message = (
        r"1 layers with 9 % of the weights would have to stay fp32, .* \(blocks\.1\.mlp\.fc2: "
        r"[\s\S]*hint: allow it with --budget 0\.1"
    )
    with pytest.raises(GateError, match=message):
        quantize(massive_bias.path, tmp_path / "half.onnx", settings=settings)
    assert list(tmp_path.iterdir()) == []


def test_explain_measures_every_block_of_a_good_artifact(tiny_export, tmp_path, photographs):
    """In the order of the graph; here of dynamic INT8 with smoothed weights."""
    settings = QuantizeSettings(
        precision="int8", explain=True, smooth=0.5, calibration=photographs[0].parent
    )
    made = quantize(tiny_export.path, tmp_path / "q.onnx", settings=settings)
    units = [s.unit for s in made.blocks]
    assert units == ["blocks.0", "blocks.1", "blocks.2", "head"]
    assert all(0 < s.error_ratio < 1 for s in made.blocks)
    assert made.manifest.conversion.calibration == "2 of 2 images of images"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["q.golden.npz", "q.onnx"]


def test_an_artifact_that_cannot_be_measured_is_refused(tiny_export, fp16, copied, tmp_path):
    """No manifest, no golden file, an old golden file, or an artifact that is converted already."""
    source = copied()
    with pytest.raises(UsageError, match="is the fp32 artifact itself"):
        quantize(source, source, settings=FP16)
    golden_path(source).unlink()
    with pytest.raises(ArtifactError, match=r"tiny\.golden\.npz"):
        quantize(source, settings=FP16)
    old = dataclasses.replace(Golden.read(tiny_export.golden), e16={}, ebf16={})
    old.write(tmp_path / "old.npz")
    with pytest.raises(ArtifactError, match=r"torch float16[\s\S]*export the fp32 model"):
        quantize(source, settings=FP16, golden=tmp_path / "old.npz")
    with pytest.raises(ArtifactError, match="is fp16 already"):
        quantize(fp16.path, settings=BF16)


def test_real_images_are_compared_and_certified(copied, tmp_path, photographs):
    """Folders named after the classes give agreement and accuracy; the output has a default."""
    source = copied()
    for i, name in enumerate(["name 0", "name 3", "name 3"]):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True, exist_ok=True)
        with Image.open(photographs[i % 2]) as picture:
            picture.resize((80, 60)).rotate(40 * i).save(folder / f"{i}.png")
    settings = QuantizeSettings(precision="fp16", images=tmp_path / "photos", max_drop=0.0)
    made = quantize(source, settings=settings)
    assert made.path == tmp_path / "tiny.fp16.onnx"
    stage = made.comparison.stage
    assert stage.real_images == 3
    assert stage.real_agreement == 1.0
    assert stage.accuracy_drop == 0.0
    assert stage.accuracy.startswith("3 real images: top-1 agrees on 100.00 %, ")


def test_a_result_may_have_the_name_of_its_source_or_of_a_scratch_file(tiny_export, tmp_path):
    """Scratch files are in folders of their own."""
    made = quantize(tiny_export.path, tmp_path / "tiny.onnx", settings=FP16)
    assert converted_nodes(OnnxFile.read(made.path)) == 15
    assert made.manifest.graph_sha256 == OnnxFile.read(made.path).graph_sha256()


def test_max_drop_is_refused_for_random_weights(copied, photographs):
    """Their classes mean nothing, so that the option would have no effect."""
    source = copied(weights=Weights(source="random (seed 0)"))
    settings = QuantizeSettings(precision="fp16", images=photographs[0].parent, max_drop=1.0)
    with pytest.raises(UsageError, match=r"the weights of tiny\.onnx are random"):
        quantize(source, settings=settings)


def test_max_drop_needs_images_of_known_classes(copied, photographs):
    """Without them no accuracy is measured, and the option would have no effect."""
    settings = QuantizeSettings(precision="fp16", images=photographs[0].parent, max_drop=1.0)
    with pytest.raises(UsageError, match=r"--max-drop: the class of each image .*\nhint: .*digits"):
        quantize(copied(), settings=settings)


def test_weights_of_a_file_named_random_are_not_random():
    """They have a hash, so that their classes count."""
    assert not Weights(source="random (seed 0)", sha256="ab").random
    assert not Weights(source="random_erasing.safetensors", sha256="ab").random
    assert Weights(source="random (seed 0)").random


def test_a_conversion_of_nothing_is_refused(reweighted, tmp_path):
    """Where every weight overflows, the file would be fp32 under another name."""

    def overflow(model) -> None:
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and name.endswith("weight"):
                parameter.data[[0, -1], 0] = 1e5  # of q, and of k and v

    source = reweighted(overflow)
    settings = dataclasses.replace(FP16, budget=1.0)
    with pytest.raises(GateError, match="none of its 15 products with weights would be fp16"):
        quantize(source.path, tmp_path / "half.onnx", settings=settings)

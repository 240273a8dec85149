"""A narrower artifact is written when it is good enough, and says what made it so."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from vit_export.artifact.golden import Golden
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.errors import ArtifactError, GateError, OutputError, UsageError
from vit_export.gate.validate import compare
from vit_export.graph.half.convert import narrow_nodes, to_half
from vit_export.graph.half.emulate import to_rounded
from vit_export.pipeline.export import export
from vit_export.pipeline.quantize import QuantizeSettings, quantize
from vit_export.pipeline.settings import ExportSettings
from vit_export.quantization.trials import golden_harm
from vit_export.runtime import load
from vit_export.runtime.onnxruntime.runner import OrtRunner

FP16, BF16 = QuantizeSettings(precision="fp16"), QuantizeSettings(precision="bf16")


def test_fp16_passes_and_the_file_says_how(tiny_export, tmp_path):
    """Two gates: as a GPU rounds, and as the file runs here; then it takes its name."""
    made = quantize(tiny_export.path, tmp_path / "tiny.fp16.onnx", settings=FP16)
    manifest = OnnxFile.read(made.path).manifest
    assert manifest.precision == "fp16"
    assert manifest.passed is True
    stages = [stage.name for stage in manifest.certificate]
    assert stages[-2:] == ["fp32 -> fp16, every operation rounded", "fp32 -> fp16"]
    assert stages[:-2] == [stage.name for stage in tiny_export.manifest.certificate]
    assert manifest.conversion.planned == manifest.conversion.narrowed == 14
    assert manifest.conversion.kept == ()
    assert manifest.conversion.source_sha256 == tiny_export.manifest.graph_sha256
    assert manifest.certificate[-1].accuracy == "unmeasured"
    assert narrow_nodes(OnnxFile.read(made.path)) == 14
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.fp16.golden.npz", "tiny.fp16.onnx"]
    assert made.size_bytes == made.path.stat().st_size


def test_the_gate_measures_by_torchs_own_float16(tiny_export, tmp_path):
    """Twice its distance, and never more than 1e-2 of the largest value."""
    made = quantize(tiny_export.path, tmp_path / "half.onnx", settings=FP16)
    golden = Golden.read(tiny_export.golden)
    largest = np.abs(golden.outputs["logits"]).max()
    expected = min(2 * golden.e16["logits"], 1e-2 * largest)
    for stage in made.manifest.certificate[-2:]:
        assert stage.tolerance == expected
        assert stage.baseline_max_abs == golden.e16["logits"]
        assert 0 < stage.max_abs <= expected


def test_validate_and_load_take_the_narrow_artifact(tiny_export, tmp_path):
    """With its own limits, from the golden file beside it."""
    made = quantize(tiny_export.path, tmp_path / "half.onnx", settings=FP16)
    found = compare(OrtRunner(made.path, provider="cpu"), Golden.read(made.golden))
    assert found.passed
    assert found.stage.tolerance == made.comparison.stage.tolerance
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    wide, narrow = load(tiny_export.path, provider="cpu"), load(made.path, provider="cpu")
    np.testing.assert_allclose(narrow.logits(images), wide.logits(images), atol=1e-2)


def test_neither_quantize_nor_onnx_takes_an_engines_golden_file(tiny_export, make_model, tmp_path):
    """One of another model, beside an engine of the same stem."""
    files = {"b.engine": b"plan", "b.golden.npz": b"its truth"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for attempt in (
        lambda: quantize(tiny_export.path, tmp_path / "b.onnx", settings=FP16),
        lambda: export(make_model(), tmp_path / "b.onnx"),
    ):
        with pytest.raises(OutputError, match=r"b\.golden\.npz, which b\.engine is measured with"):
            attempt()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_half_precision_inputs_are_fed_by_classify(tiny_export, tmp_path):
    """Somebody who classifies images need not know."""
    settings = dataclasses.replace(FP16, half_io=True)
    made = quantize(tiny_export.path, tmp_path / "half.onnx", settings=settings)
    assert [str(spec.dtype) for spec in made.manifest.inputs] == ["float16"]
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    top = load(made.path, provider="cpu").classify(image, top=1)
    assert top[0].index == load(tiny_export.path, provider="cpu").classify(image, top=1)[0].index
    assert compare(OrtRunner(made.path, provider="cpu"), Golden.read(made.golden)).passed


def test_bf16_is_measured_rounded_and_not_called_passed(tiny_export, tmp_path):
    """This machine has no kernels for it; the certificate says so."""
    made = quantize(tiny_export.path, tmp_path / "half.onnx", settings=BF16)
    rounded, last = made.manifest.certificate[-2:]
    assert rounded.passed is True
    assert 0 < rounded.max_abs <= rounded.tolerance
    assert last.passed is None
    assert "no bfloat16 kernels" in last.reason
    assert OnnxFile.read(made.path).manifest.passed is None


def test_a_massive_activation_breaks_all_fp16(massive_product, tmp_path):
    """NaN where a GPU rounds; ONNX Runtime's CPU alone would have called it good."""
    to_half(massive_product.path, tmp_path / "all.onnx", recipe="all")
    to_rounded(tmp_path / "all.onnx", tmp_path / "rounded.onnx")
    golden = Golden.read(massive_product.golden)
    manifest = massive_product.manifest.replace(precision="fp16")
    broken = compare(OrtRunner(tmp_path / "rounded.onnx"), golden, manifest=manifest)
    assert not broken.passed
    assert "NaN or infinite" in broken.stage.reason
    assert re.search(r"outside its tolerance: blocks\.[34] ", broken.stage.reason)
    settings = dataclasses.replace(FP16, recipe="all")
    with pytest.raises(GateError, match=r"reaches 7\.\d+e\+04 \(first at blocks\.3.*leave"):
        quantize(massive_product.path, tmp_path / "x.onnx", settings=settings)
    assert not (tmp_path / "x.onnx").exists()


def test_a_massive_activation_is_repaired_by_one_layer(massive_product, tmp_path):
    """Of 12 blocks one has a layer in float32; the certificate names it and why."""
    made = quantize(massive_product.path, tmp_path / "half.onnx", settings=FP16)
    assert made.manifest.passed is True
    (kept,) = made.manifest.conversion.kept
    assert (kept.layer, kept.precision) == ("blocks.3.mlp.fc2", "fp32")
    assert kept.reason == "alone in fp16 it makes the result NaN or infinite"
    assert [s.unit for s in made.blocks if s.harm > 1] == ["blocks.3"]
    assert [s.unit for s in made.layers if s.harm > 1] == ["blocks.3.mlp.fc2"]
    assert made.manifest.conversion.narrowed == made.manifest.conversion.planned - 1
    assert any("torch float16 itself overflows" in note for note in made.comparison.stage.notes)


def test_the_cpu_alone_would_have_passed_what_overflows(massive_product, tmp_path):
    """The reason for the second gate, on the mixed recipe without a repair."""
    to_half(massive_product.path, tmp_path / "half.onnx")
    golden = Golden.read(massive_product.golden)
    manifest = massive_product.manifest.replace(precision="fp16")
    assert compare(OrtRunner(tmp_path / "half.onnx"), golden, manifest=manifest).passed
    to_rounded(tmp_path / "half.onnx", tmp_path / "rounded.onnx")
    assert not compare(OrtRunner(tmp_path / "rounded.onnx"), golden, manifest=manifest).passed


def test_a_bias_beyond_float16_stays_wide_without_a_search(massive_bias, tmp_path):
    """The weight itself tells."""
    made = quantize(massive_bias.path, tmp_path / "half.onnx", settings=FP16)
    (kept,) = made.manifest.conversion.kept
    assert kept.layer == "blocks.3.mlp.fc2"
    assert "lie beyond 65504" in kept.reason
    assert made.blocks == ()


def test_a_repair_beyond_the_budget_is_refused(shallow_massive_product, tmp_path):
    """With what it would take, and nothing written."""
    settings = dataclasses.replace(FP16, budget=0.01)
    message = r"1 layers with 7 % of the weights would have to stay fp32 \(blocks\.3\.mlp\.fc2\)"
    with pytest.raises(GateError, match=message):
        quantize(shallow_massive_product.path, tmp_path / "half.onnx", settings=settings)
    assert list(tmp_path.iterdir()) == []


def test_explain_measures_every_block_of_a_good_artifact_too(tiny_export, tmp_path):
    """In the order of the graph."""
    settings = dataclasses.replace(FP16, explain=True)
    made = quantize(tiny_export.path, tmp_path / "half.onnx", settings=settings)
    units = [s.unit for s in made.blocks]
    assert units == ["patch_embed.proj", "blocks.0", "blocks.1", "blocks.2", "head"]
    assert all(0 < s.harm < 1 for s in made.blocks)


def test_what_cannot_be_measured_is_refused(tiny_export, tmp_path):
    """No manifest, no golden file, an old golden file, or an artifact that is narrow already."""
    source = tmp_path / "tiny.onnx"
    shutil.copy(tiny_export.path, source)
    with pytest.raises(ArtifactError, match=r"no golden file tiny\.golden\.npz beside it"):
        quantize(source, settings=FP16)
    old = dataclasses.replace(Golden.read(tiny_export.golden), e16={}, ebf16={})
    old.write(tmp_path / "old.npz")
    with pytest.raises(
        ArtifactError, match=r"lacks e16, the error of torch float16.*\nhint: export the fp32 model"
    ):
        quantize(source, settings=FP16, golden=tmp_path / "old.npz")
    made = quantize(source, settings=FP16, golden=tiny_export.golden)
    assert made.path == tmp_path / "tiny.fp16.onnx"
    with pytest.raises(ArtifactError, match="is fp16 already"):
        quantize(made.path, settings=BF16)
    with pytest.raises(UsageError, match="is the fp32 artifact itself"):
        quantize(source, source, settings=FP16, golden=tiny_export.golden)


def test_real_images_are_compared_and_certified(make_model, tmp_path, photographs):
    """A folder per class, called as the artifact's classes: agreement and accuracy."""
    model = make_model()
    made = export(
        model,
        tmp_path / "m.onnx",
        settings=ExportSettings(labels=["cat", *(f"c{i}" for i in range(9))]),
    )
    for i, name in enumerate(["cat", "c3", "c3"]):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True, exist_ok=True)
        with Image.open(photographs[i % 2]) as picture:
            picture.rotate(40 * i).save(folder / f"{i}.png")
    settings = QuantizeSettings(precision="fp16", images=tmp_path / "photos", max_drop=0.0)
    stage = quantize(made.path, settings=settings).comparison.stage
    assert stage.real_images == 3
    assert stage.real_agreement == 1.0
    assert stage.accuracy_drop == 0.0
    assert stage.accuracy.startswith("3 real images: top-1 agrees on 100.00 %, ")


@pytest.mark.parametrize("name", ["converted", "rounded", "smoothed", "exported"])
def test_a_result_may_be_called_as_a_scratch_file(tiny_export, tmp_path, name):
    """What is measured is what is published, whatever its name."""
    made = quantize(tiny_export.path, tmp_path / f"{name}.onnx", settings=FP16)
    assert narrow_nodes(OnnxFile.read(made.path)) == 14
    assert made.manifest.graph_sha256 == OnnxFile.read(made.path).graph_sha256()


def test_a_trained_checkpoint_called_random_is_still_judged_by_its_classes(tiny_export):
    """A hash says that there was a file; the name says nothing."""
    weights = tiny_export.manifest.weights
    trained = msgspec.structs.replace(weights, source="random_erasing.safetensors", sha256="ab")
    assert not trained.random
    assert not msgspec.structs.replace(weights, source="random (seed 0)", sha256="ab").random
    assert msgspec.structs.replace(weights, source="random (seed 0)").random


def test_a_drop_on_random_weights_is_refused(make_model, tmp_path, photographs):
    """It would be ignored otherwise."""
    made = export("mnist", tmp_path / "m.onnx", settings=ExportSettings(overrides={"depth": 1}))
    settings = QuantizeSettings(precision="fp16", images=photographs[0].parent, max_drop=1.0)
    with pytest.raises(UsageError, match=r"the weights of m\.onnx are random"):
        quantize(made.path, settings=settings)


def test_nothing_narrow_is_not_called_narrow(make_model, tmp_path):
    """Where every weight overflows, the file would be fp32 under another name."""
    model = make_model(depth=1)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and name.endswith("weight"):
            parameter.data[0] = 1e5
    made = export(model, tmp_path / "m.onnx")
    settings = dataclasses.replace(FP16, budget=1.0)
    with pytest.raises(GateError, match="none of its 6 products with weights would be narrow"):
        quantize(made.path, settings=settings)


def test_the_search_looks_at_every_size(make_model, tmp_path):
    """What breaks at another size only is harm as well."""
    made = export(
        make_model(depth=1), tmp_path / "m.onnx", settings=ExportSettings(dynamic_size=True)
    )
    to_half(made.path, tmp_path / "half.onnx")
    runner = OrtRunner(tmp_path / "half.onnx", provider="cpu")
    manifest, golden = made.manifest.replace(precision="fp16"), Golden.read(made.golden)
    other = dataclasses.replace(golden.others[1], e16=dict.fromkeys(golden.e16, 1e-9))
    strict = dataclasses.replace(golden, others=(golden.others[0], other))
    assert golden_harm(runner, golden, manifest) < 1 < golden_harm(runner, strict, manifest)


def test_export_makes_the_narrow_artifact_in_one_step(make_model, tmp_path):
    """The fp32 file is measured on the way, and not kept."""
    made = export(make_model(), tmp_path / "m.fp16.onnx", settings=ExportSettings(quantize=FP16))
    assert made.manifest.precision == "fp16"
    assert made.path.name == "m.fp16.onnx"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.fp16.golden.npz", "m.fp16.onnx"]
    stages = [stage.name for stage in OnnxFile.read(made.path).manifest.certificate]
    assert stages[:2] == ["torch -> onnx", "onnx -> simplified"]


def test_the_same_source_gives_the_same_file(tiny_export, tmp_path):
    """To the byte, in another folder and under the same name."""
    files: list[Path] = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        files.append(quantize(tiny_export.path, tmp_path / name / "m.onnx", settings=FP16).path)
    assert files[0].read_bytes() == files[1].read_bytes()

"""INT8 through the door `quantize`: measured by cosine and scale, repaired, or refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.errors import GateError
from vit_export.graph.layers import converted_nodes
from vit_export.pipeline.quantize import quantize
from vit_export.quantization import gate, prepare
from vit_export.quantization.activation_ranges import Ranges
from vit_export.quantization.settings import QuantizeSettings

INT8 = QuantizeSettings(precision="int8")


def test_dynamic_int8_certifies_that_rows_depend_on_their_neighbours(tiny_export, tmp_path):
    """A batch has one activation scale: measured and noted, not refused."""
    made = quantize(tiny_export.path, tmp_path / "q.onnx", settings=INT8)
    stage = made.comparison.stage
    assert stage.passed is True
    assert stage.tolerance is None
    assert stage.cosine >= 0.99
    assert stage.accuracy == "unmeasured"
    assert stage.row_max_abs > 0
    assert any("share one activation scale" in note for note in stage.notes)
    manifest = OnnxFile.read(made.path).manifest
    assert manifest.conversion.narrowed == converted_nodes(OnnxFile.read(made.path)) == 14


def test_static_int8_is_calibrated_smoothed_and_independent_of_neighbours(
    tiny_export, tmp_path, photographs
):
    """Fixed scales: the same row gives the same result anywhere. Black pictures are noted."""
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (40, 40)).save(images / "black.png")
    for photograph in photographs:
        with Image.open(photograph) as picture:
            picture.resize((60, 40)).save(images / f"{photograph.stem}.png")
    settings = QuantizeSettings(precision="int8-static", calibration=images, smooth=0.5)
    made = quantize(tiny_export.path, tmp_path / "q.onnx", settings=settings)
    stage = made.comparison.stage
    assert stage.passed is True
    largest = np.abs([m.max_abs for m in stage.measurements]).max()
    assert stage.row_max_abs <= max(largest, 1e-2)
    assert Ranges.read(tmp_path / "q.ranges.npz").images == 3
    assert made.manifest.conversion.calibration == "3 of 3 images of images, percentile 99.99"
    smoothed, flat = made.manifest.conversion.notes
    assert smoothed == "SmoothQuant with alpha 0.5 after 6 LayerNormalizations"
    assert flat.startswith("1 of 3 calibration images have one colour only")


def test_a_node_that_was_not_converted_is_an_error(tiny_export, tmp_path, monkeypatch):
    """The nodes of the file are counted: a file without INT8 would compute the best outputs."""
    real = gate.converted_nodes
    monkeypatch.setattr(gate, "converted_nodes", lambda file: real(file) - 1)
    with pytest.raises(GateError, match="13 nodes with weights are int8 in the file, expected 14"):
        quantize(tiny_export.path, tmp_path / "q.onnx", settings=INT8)
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_are_three_percent_too_large_are_refused(tiny_export, tmp_path, monkeypatch):
    """Cosine cannot detect a wrong scale, and no layer in fp32 repairs it."""
    real = prepare.to_int8_dynamic

    def convert(source, destination, keep=()):
        done = real(source, destination, keep=keep)
        model = onnx.load(destination)
        model.graph.initializer.append(numpy_helper.from_array(np.float32(1.03), "gain"))
        node = next(node for node in model.graph.node if "logits" in node.output)
        node.output[0] = "exact"
        model.graph.node.append(helper.make_node("Mul", ["exact", "gain"], ["logits"]))
        onnx.save(model, destination)
        return done

    monkeypatch.setattr(prepare, "to_int8_dynamic", convert)
    with pytest.raises(
        GateError, match=r"tiny\.onnx cannot become int8: logits: its values are 1\.0"
    ):
        quantize(tiny_export.path, tmp_path / "q.onnx", settings=INT8)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def outlier(reweighted):
    """One MLP has a hidden unit in the thousands, which leaves the others no INT8 levels."""

    def change(model) -> None:
        mlp = model.blocks[1].mlp
        mlp.fc1.bias.data[0] = 3000.0
        mlp.fc2.weight.data[:, 0] = 1e-4

    return reweighted(change)


def test_an_outlier_is_repaired_by_the_layer_that_reads_it(outlier, tmp_path):
    """The second product of that block stays in float32, and the gate passes."""
    made = quantize(outlier.path, tmp_path / "q.onnx", settings=INT8)
    assert made.comparison.passed
    (kept,) = made.manifest.conversion.kept
    assert kept.layer == "blocks.1.mlp.fc2"
    assert kept.reason.startswith("alone in int8 its error is")
    assert made.manifest.conversion.narrowed == made.manifest.conversion.planned - 1
    assert max(made.blocks, key=lambda s: s.error_ratio).unit == "blocks.1"

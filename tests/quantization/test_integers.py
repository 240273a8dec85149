"""INT8 through the same door: gated by angle, repaired, its batches certified."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from vit_export.artifact.golden import Golden
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.errors import GateError
from vit_export.gate.distance import references
from vit_export.gate.tolerances import TOLERANCES
from vit_export.graph.int8.dynamic import quantised_nodes
from vit_export.pipeline.export import export
from vit_export.pipeline.quantize import QuantizeSettings, quantize
from vit_export.quantization import conversions as target
from vit_export.quantization.activation_ranges import Ranges
from vit_export.runtime.onnxruntime.runner import OrtRunner

INT8 = QuantizeSettings(precision="int8")


def test_dynamic_int8_passes_and_certifies_that_rows_depend_on_neighbours(tiny_export, tmp_path):
    """One activation scale for a batch: measured, said, and not refused."""
    made = quantize(tiny_export.path, tmp_path / "q.onnx", settings=INT8)
    stage = made.comparison.stage
    assert stage.passed is True
    assert stage.tolerance is None
    assert stage.cosine >= 0.99
    assert stage.accuracy == "unmeasured"
    assert stage.row_max_abs > 0
    (note,) = [note for note in stage.notes if "neighbours" in note]
    assert "share one activation scale" in note
    manifest = OnnxFile.read(made.path).manifest
    assert manifest.conversion.narrowed == quantised_nodes(OnnxFile.read(made.path)) == 13


def test_static_rows_do_not_depend_on_their_neighbours(tiny_export, tmp_path, photographs):
    """Fixed scales: the same row gives the same result wherever it stands."""
    settings = QuantizeSettings(precision="int8-static", calibration=photographs[0].parent)
    made = quantize(tiny_export.path, tmp_path / "q.onnx", settings=settings)
    stage = made.comparison.stage
    assert stage.passed is True
    assert stage.row_max_abs <= 1e-2 * np.abs(OrtRunner(tiny_export.path).run(
        {"pixel_values": np.zeros((1, 3, 32, 32), np.float32)})["logits"]).max()  # fmt: skip
    assert Ranges.read(tmp_path / "q.ranges.npz").images == 2


def test_a_node_that_was_left_out_of_the_plan_is_an_error(tiny_export, tmp_path, monkeypatch):
    """The file is counted, not the plan: quantising nothing would keep every output right."""
    real = target.quantised_nodes
    monkeypatch.setattr(target, "quantised_nodes", lambda file: real(file) - 1)
    with pytest.raises(GateError, match="12 nodes with weights are int8 in the file, the plan has"):
        quantize(tiny_export.path, tmp_path / "q.onnx", settings=INT8)
    assert list(tmp_path.iterdir()) == []


def test_one_number_per_image_has_no_angle_so_its_spread_decides(tmp_path):
    """Cosine would call any number of the same sign a perfect copy."""
    golden = Golden(
        images=np.zeros((4, 2, 2, 1), np.uint8),
        outputs={"logits": np.array([[2.9], [3.0], [3.1], [3.2]])},
        e32={"logits": 0.0},
    )
    reference = references(golden, TOLERANCES["int8"])["logits"]
    assert reference.tolerance == pytest.approx(0.015)
    assert not reference.accepts(distance=0.1, cosine=1.0)
    assert reference.accepts(distance=0.01, cosine=1.0)


@pytest.fixture(scope="module")
def outlier(tmp_path_factory, make_model):
    """One MLP whose hidden units reach thousands, of which INT8 keeps the largest alone."""
    model = make_model()
    block = model.blocks[1]
    block.mlp.fc1.bias.data[0] = 3000.0
    block.mlp.fc2.weight.data[:, 0] = 1e-4
    return export(model, tmp_path_factory.mktemp("outlier") / "outlier.onnx")


def test_an_outlier_is_repaired_by_the_layer_that_reads_it(outlier, tmp_path):
    """The second product of that block stays in float32, and the gate passes."""
    made = quantize(outlier.path, tmp_path / "q.onnx", settings=INT8)
    assert made.comparison.passed
    assert [kept.layer for kept in made.manifest.conversion.kept] == ["blocks.1.mlp.fc2"]
    assert made.manifest.conversion.narrowed == made.manifest.conversion.planned - 1
    worst = max(made.blocks, key=lambda s: s.harm)
    assert worst.unit == "blocks.1"


def test_without_a_budget_it_is_refused(outlier, tmp_path):
    """And nothing is written."""
    with pytest.raises(GateError, match=r"--budget allows 0 % \(blocks\.1\.mlp\.fc2: alone"):
        quantize(outlier.path, tmp_path / "q.onnx", settings=dataclasses.replace(INT8, budget=0.0))
    assert list(tmp_path.iterdir()) == []

"""What INT8 narrows, and what it must leave alone."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.gate.distance import cosine
from vit_export.graph.int8.dynamic import quantised_nodes, to_int8_dynamic
from vit_export.graph.int8.select import input_name, plan
from vit_export.graph.layers import layer_of
from vit_export.pipeline.export import export
from vit_export.pipeline.settings import ExportSettings

SQUARE = np.eye(4, dtype=np.float32)


def test_every_planned_layer_reads_a_tensor_that_can_be_watched(tiny_export):
    """Four in each block, and the head."""
    inputs = {layer_of(node): input_name(node) for node in plan(tiny_export.path).planned}
    assert len(inputs) == 13
    assert inputs["blocks.1.mlp.fc1"] == "blocks.1.norm2/LayerNormalization"
    assert inputs["blocks.1.mlp.fc2"] == "blocks.1.mlp.act/Gelu"
    assert inputs["head"] == "features"


@pytest.mark.parametrize(
    ("fields", "settings", "count"),
    [
        ({}, {"simplify": False}, 13),
        pytest.param({}, {"attention": "op"}, 13, marks=pytest.mark.slow),
        ({}, {"batch": 2}, 13),
        pytest.param({}, {"dynamic_size": True}, 13, marks=pytest.mark.slow),
        ({"distilled": True}, {}, 14),
        pytest.param({"representation_size": 24}, {}, 14, marks=pytest.mark.slow),
    ],
    ids=["as exported", "Attention node", "fixed batch", "any size", "two heads", "pre_logits"],
)
def test_every_kind_of_artifact_is_planned_whole(
    make_model, run_ort, tmp_path, fields, settings, count
):
    """And converted so that it runs, near what it was."""
    source = export(
        make_model(**fields), tmp_path / "fp32.onnx", settings=ExportSettings(**settings)
    ).path
    assert len(plan(source).planned) == count
    to_int8_dynamic(source, tmp_path / "int8.onnx")
    assert quantised_nodes(OnnxFile.read(tmp_path / "int8.onnx")) == count
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    for found, wanted in zip(run_ort(tmp_path / "int8.onnx", x), run_ort(source, x), strict=True):
        assert cosine(found.astype(np.float64), wanted.astype(np.float64)) >= 0.999


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("MatMul", ["x", "x"], ["y"]),
        helper.make_node("MatMul", ["w", "x"], ["y"]),
        helper.make_node("Gemm", ["x", "w"], ["y"], alpha=0.5),
        helper.make_node("Gemm", ["x", "w", "w"], ["y"], beta=0.5),
        helper.make_node("Gemm", ["x", "w"], ["y"], transA=1),
    ],
)
def test_what_is_no_plain_product_with_a_constant_is_not_planned(write_graph, node):
    """Beside one that is."""
    plain = helper.make_node("MatMul", ["x", "w"], ["z"], name="fc/MatMul")
    source = write_graph([node, plain], {"w": SQUARE}, [4, 4], [4, 4])
    assert [n.name for n in plan(source).planned] == ["fc/MatMul"]

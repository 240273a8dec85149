"""Which nodes become INT8, and which must not."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from vit_export.graph.int8.select import Int8Conversion, input_of
from vit_export.graph.layers import layer_of

SQUARE = np.eye(4, dtype=np.float32)


def test_every_planned_layer_reads_a_tensor_that_can_be_calibrated(tiny_export):
    """Four in each block, one more in the last, and the head."""
    planned = Int8Conversion(tiny_export.path).planned
    inputs = {layer_of(node): input_of(node).name for node in planned}
    assert len(inputs) == 14
    assert inputs["blocks.1.mlp.fc1"] == "blocks.1.norm2/LayerNormalization"
    assert inputs["blocks.1.mlp.fc2"] == "blocks.1.mlp.act/Gelu"
    assert inputs["head"] == "features"


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
def test_only_plain_products_with_a_constant_matrix_are_planned(write_graph, node):
    """The graph also holds one plain product."""
    plain = helper.make_node("MatMul", ["x", "w"], ["z"], name="fc/MatMul")
    source = write_graph([node, plain], {"w": SQUARE}, [4, 4], [4, 4])
    assert [node.name for node in Int8Conversion(source).planned] == ["fc/MatMul"]

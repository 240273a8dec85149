"""Convert an fp32 graph to dynamic INT8: activations are quantised while the model runs.

Weights are INT8 per output channel, activations UINT8 with one scale per tensor and batch. Only
products with a constant matrix are converted. The patch convolution, attention's own products,
softmax, LayerNormalization and GELU stay in float32. Each product becomes

    DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul (-> Add, for a Gemm's bias)

which ONNX Runtime fuses into `DynamicQuantizeMatMul`, or into `MatMulIntegerToFloat` where one
quantised tensor serves several products. `onnxruntime.quantization.quantize_dynamic` makes a
similar graph, whose integers saturate on some processors; see `weights.py`.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import onnx_ir as ir

from vit_export.artifact.manifest import Conversion
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.graph.builder import UniqueNames, insert_before, remove_unread_constants
from vit_export.graph.int8.select import Int8Weights, Plan, input_of, plan
from vit_export.graph.io import save_graph
from vit_export.graph.layers import layer_of


def to_int8_dynamic(source: Path, destination: Path, *, keep: Collection[str] = ()) -> Conversion:
    """Convert an fp32 artifact.

    Args:
        source: An .onnx file in float32.
        destination: File to write; its weights go to `destination` + `.data`.
        keep: Layers that stay in float32, e.g. `"blocks.3.mlp.fc2"`.

    Returns:
        Counts of converted nodes; `quantised_nodes` of the written file must equal `narrowed`.

    Raises:
        ArtifactError: The source is damaged, is not float32, or has no product to convert.
        UsageError: A layer to keep is not among the planned ones.
    """
    planned = plan(source, keep)
    _Dynamic(planned).convert()
    save_graph(planned.model, destination)
    return Conversion(
        recipe="dynamic", planned=len(planned.planned), narrowed=len(planned.narrowed)
    )


def quantised_nodes(file: OnnxFile) -> int:
    """Return the number of INT8 products in a file, dynamic or static."""
    constants = {tensor.name for tensor in file.initializers if tensor.dtype == "int8"}
    dequantised = {
        node.outputs[0]
        for node in file.nodes
        if node.op_type == "DequantizeLinear" and node.inputs[0] in constants
    }
    return sum(
        (node.op_type == "MatMulInteger" and node.inputs[1] in constants)
        or (node.op_type in ("MatMul", "Gemm") and node.inputs[1] in dequantised)
        for node in file.nodes
    )


class _Dynamic:
    """Conversion of one graph, in place."""

    def __init__(self, planned: Plan) -> None:
        self.graph, self.nodes = planned.model.graph, planned.narrowed
        self.names = UniqueNames(self.graph)
        self.weights = Int8Weights(self.graph, self.names)
        self.quantised: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}

    def convert(self) -> None:
        for node in self.nodes:
            self._replace(node)
        remove_unread_constants(self.graph)

    def _replace(self, node: ir.Node) -> None:
        def insert(op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
            name = self.names(f"{layer_of(node)}/{op_type}")
            return insert_before(self.graph, node, op_type, list(inputs), name, attributes)

        weight, weight_scale = self.weights.of(node, as_columns=True)
        x, scale, zero_point = self._quantised(input_of(node), node)
        integers = insert("MatMulInteger", x, weight, zero_point)
        product = insert("Cast", integers, to=ir.DataType.FLOAT.value)
        new = insert("Mul", product, insert("Mul", scale, weight_scale))
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None:
            new = insert("Add", new, bias)
        old = node.outputs[0]
        name, new.type, new.shape = old.name, old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)
        new.name = name

    def _quantised(self, x: ir.Value, reader: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Return a tensor as uint8, its scale and zero point; all readers share the node."""
        if x not in self.quantised:
            name = self.names(f"{layer_of(reader)}/DynamicQuantizeLinear")
            node = ir.node("DynamicQuantizeLinear", [x], num_outputs=3, name=name)
            for value, suffix in zip(node.outputs, ("", ":scale", ":zero_point"), strict=True):
                value.name = name + suffix
            self.graph.insert_before(reader, node)
            self.quantised[x] = (node.outputs[0], node.outputs[1], node.outputs[2])
        return self.quantised[x]

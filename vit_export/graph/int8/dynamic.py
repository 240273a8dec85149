"""ONNX to INT8 ONNX whose activations are quantised as it runs ("dynamic").

Weights are INT8 per output channel, activations UINT8 with one scale per tensor and batch. Only
products with a constant matrix are narrowed: the patch convolution, attention's own products,
softmax, LayerNormalization and GELU stay in float32. Each becomes

    DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul (-> Add, of a Gemm's bias)

which ONNX Runtime fuses into `DynamicQuantizeMatMul`, or into `MatMulIntegerToFloat` where one
quantised tensor serves several products. What `onnxruntime.quantization.quantize_dynamic` makes
looks alike, but its integers saturate on some processors; `int8_weights` says how these do not.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import onnx_ir as ir

from vit_export.artifact.manifest import Conversion
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.graph.int8.select import Names, Plan, Weights, drop_unread, plan
from vit_export.graph.io import save_graph
from vit_export.graph.layers import layer_of, weight_of


def to_int8_dynamic(source: Path, destination: Path, *, keep: Collection[str] = ()) -> Conversion:
    """Convert an fp32 artifact.

    Args:
        source: An .onnx file in float32.
        destination: File to write; its weights go to `destination` + `.data`.
        keep: Layers that stay in float32, e.g. `"blocks.3.mlp.fc2"`.

    Returns:
        What was done; `quantised_nodes` of the written file must equal its `narrowed`.

    Raises:
        ArtifactError: The source is damaged, is not float32, or has no product to narrow.
        UsageError: A layer to keep is not among those planned.
    """
    found = plan(source, keep)
    _Dynamic(found).apply()
    save_graph(found.model, destination)
    return Conversion(recipe="dynamic", planned=len(found.planned), narrowed=len(found.narrowed))


def quantised_nodes(file: OnnxFile) -> int:
    """Number of INT8 products in a file, of either recipe, as the written graph has them."""
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
    """One graph being converted, in place."""

    def __init__(self, found: Plan) -> None:
        self.graph, self.nodes = found.model.graph, found.narrowed
        self.name = Names(self.graph)
        self.weights = Weights(self.graph, self.name)
        self.quantised: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}

    def apply(self) -> None:
        """Replace every node of the plan."""
        read = [value for node in self.nodes if (value := weight_of(node)) is not None]
        for node in self.nodes:
            self._replace(node)
        drop_unread(self.graph, read)

    def _replace(self, node: ir.Node) -> None:
        layer, old = layer_of(node), node.outputs[0]
        x = node.inputs[0]
        if x is None:
            raise ValueError(f"{node.name} has no input")
        weight, weight_scale = self.weights.of(node, as_columns=True)
        quantised, scale, zero_point = self._quantised(x, node)
        product = self._before(node, "MatMulInteger", [quantised, weight, zero_point], layer)
        product_f = self._before(node, "Cast", [product], layer, {"to": ir.DataType.FLOAT.value})
        both_scales = self._before(node, "Mul", [scale, weight_scale], layer)
        new = self._before(node, "Mul", [product_f, both_scales], layer)
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            new = self._before(node, "Add", [new, node.inputs[2]], layer)
        name, new.type, new.shape = old.name, old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)
        new.name = name

    def _quantised(self, x: ir.Value, reader: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value]:
        """An activation as uint8, its scale and its zero point; made once, for all readers."""
        if x not in self.quantised:
            name = self.name(f"{layer_of(reader)}/DynamicQuantizeLinear")
            made = ir.node("DynamicQuantizeLinear", [x], num_outputs=3, name=name)
            for value, suffix in zip(made.outputs, ("", ":scale", ":zero_point"), strict=True):
                value.name = name + suffix
            self.graph.insert_before(reader, made)
            self.quantised[x] = (made.outputs[0], made.outputs[1], made.outputs[2])
        return self.quantised[x]

    def _before(
        self,
        node: ir.Node,
        op_type: str,
        inputs: list[ir.Value],
        layer: str,
        attributes: dict[str, int] | None = None,
    ) -> ir.Value:
        name = self.name(f"{layer}/{op_type}")
        made = ir.node(op_type, inputs, attributes, name=name)
        made.outputs[0].name = name
        self.graph.insert_before(node, made)
        return made.outputs[0]

"""Convert an fp32 graph to dynamic INT8: activations are quantised while the model runs.

Weights are INT8 per output channel, activations UINT8 with one scale per tensor and batch. Only
products with a constant matrix are converted. The patch convolution, attention's own products,
softmax, LayerNormalization and GELU stay in float32. Each product becomes

    DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul (-> Add, for a Gemm's bias)

which ONNX Runtime fuses into `DynamicQuantizeMatMul`, or into `MatMulIntegerToFloat` where one
quantised tensor serves several products. `onnxruntime.quantization.quantize_dynamic` makes a
similar graph, whose integers saturate on some processors; see `weights.py`.
"""

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

import onnx_ir as ir

from vit_export.artifact.manifest import Conversion
from vit_export.graph.int8.select import Int8Conversion, input_of
from vit_export.graph.layers import layer_of


def to_int8_dynamic(source: Path, destination: Path, *, keep: Collection[str] = ()) -> Conversion:
    """Convert an fp32 artifact except for the layers to keep; see `Int8Conversion` for errors."""
    conversion = Int8Conversion(source, keep)
    quantised: dict[ir.Value, Sequence[ir.Value]] = {}  # all readers of a tensor share one node
    for node in conversion.narrowed:
        x = input_of(node)
        if x not in quantised:
            quantised[x] = _quantise(conversion, x, node)
        _replace_product(conversion, node, quantised[x])
    return conversion.write(destination, recipe="dynamic")


def _quantise(conversion: Int8Conversion, x: ir.Value, reader: ir.Node) -> Sequence[ir.Value]:
    """Insert a node that quantises a tensor; return uint8 values, scale and zero point."""
    name = conversion.free_name(f"{layer_of(reader)}/DynamicQuantizeLinear")
    node = ir.node("DynamicQuantizeLinear", [x], num_outputs=3, name=name)
    for value, suffix in zip(node.outputs, ("", ":scale", ":zero_point"), strict=True):
        value.name = name + suffix
    conversion.graph.insert_before(reader, node)
    return node.outputs


def _replace_product(
    conversion: Int8Conversion, node: ir.Node, quantised: Sequence[ir.Value]
) -> None:
    """Replace a float32 product; the new nodes give its output under the same name."""
    insert = partial(conversion.insert, node)
    (x, scale, zero_point), (weight, weight_scale) = quantised, conversion.weight(node)
    integers = insert("MatMulInteger", x, weight, zero_point)
    product = insert("Cast", integers, to=ir.DataType.FLOAT.value)
    new = insert("Mul", product, insert("Mul", scale, weight_scale))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        new = insert("Add", new, bias)
    old = node.outputs[0]
    name, new.type, new.shape = old.name, old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    conversion.graph.remove(node, safe=True)
    new.name = name

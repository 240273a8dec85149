"""Convert an fp32 graph to static INT8: the ranges of activations are fixed by calibration.

QuantizeLinear and DequantizeLinear (QDQ) mark what is quantised, in the form that ONNX Runtime and
TensorRT both read. Activations are INT8 with one scale per tensor and zero point 0, as TensorRT
demands; weights are INT8 per output channel. Only the inputs and weights of products with a
constant matrix are quantised. All other tensors, the outputs of these products included, stay
float32.

ONNX Runtime computes such a MatMul in integers (`MatMulIntegerToFloat`). It computes a Gemm in
float32 from the dequantised numbers, since its integer kernel needs an INT32 bias, which TensorRT
does not read. In a Vision Transformer only the head is a Gemm.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from vit_export.artifact.manifest import Conversion
from vit_export.graph.builder import add_constant
from vit_export.graph.int8.select import Int8Conversion, input_of
from vit_export.graph.int8.weights import LARGEST, TINY


def to_int8_static(
    source: Path,
    destination: Path,
    *,
    thresholds: Mapping[str, float],
    keep: Collection[str] = (),
) -> Conversion:
    """Convert an fp32 artifact as `to_int8_dynamic` does, with fixed ranges.

    `thresholds` gives the largest magnitude of each of `planned_tensors`; larger values are
    clipped.
    """
    conversion = Int8Conversion(source, keep)
    graph, name, insert = conversion.graph, conversion.free_name, conversion.insert
    zero = add_constant(graph, ir.Tensor(np.zeros((), np.int8), name=name("int8_zero")))
    dequantised: dict[ir.Value, ir.Value] = {}  # what all readers of a tensor read instead
    for node in conversion.narrowed:
        x = input_of(node)
        weight, scales = conversion.weight(node)
        if x not in dequantised:
            step = thresholds[x.name or ""] / LARGEST
            step = step if step >= TINY else 1  # of a tensor of zeros
            tensor = ir.Tensor(np.asarray(step, np.float32), name=name(f"{x.name}_scale"))
            scale = add_constant(graph, tensor)
            integers = insert(node, "QuantizeLinear", x, scale, zero, suffix="_input")
            dequantised[x] = insert(
                node, "DequantizeLinear", integers, scale, zero, suffix="_input"
            )
        if weight not in dequantised:
            dequantised[weight] = insert(
                node, "DequantizeLinear", weight, scales, suffix="_weight", axis=1
            )
        node.replace_input_with(0, dequantised[x])
        node.replace_input_with(1, dequantised[weight])
        node.attributes.pop("transB", None)  # the INT8 weight is (K, N)
    return conversion.write(destination, recipe="static")

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

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from vit_export.artifact.manifest import Conversion
from vit_export.errors import ArtifactError
from vit_export.graph.builder import UniqueNames, add_constant, insert_before
from vit_export.graph.int8.select import Int8Weights, input_of, is_transposed, plan
from vit_export.graph.int8.weights import LARGEST
from vit_export.graph.layers import layer_of


def to_int8_static(
    source: Path,
    destination: Path,
    *,
    thresholds: Mapping[str, float],
    keep: Collection[str] = (),
) -> Conversion:
    """Convert an fp32 artifact.

    Args:
        source: An .onnx file in float32.
        destination: File to write; its weights go to `destination` + `.data`.
        thresholds: Largest magnitude that INT8 represents, by name, of each of `planned_tensors`;
            larger values are clipped. `Ranges.thresholds` computes them.
        keep: Layers that stay in float32, e.g. `"blocks.3.mlp.fc2"`.

    Returns:
        Counts of converted nodes; `quantised_nodes` of the written file must equal `narrowed`.

    Raises:
        ArtifactError: The source is damaged, is not float32, has no product to convert, or a
            tensor has no finite threshold of at least 0.
        UsageError: A layer to keep is not among the planned ones.
    """
    planned = plan(source, keep)
    graph = planned.model.graph
    names = UniqueNames(graph)
    weights = Int8Weights(graph, names)
    zero = add_constant(graph, names("int8_zero"), np.zeros((), np.int8))
    dequantised: dict[ir.Value, ir.Value] = {}  # what all readers of a tensor read instead

    def insert(node: ir.Node, op: str, what: str, *inputs: ir.Value, **axis: int) -> ir.Value:
        name = names(f"{layer_of(node)}/{op}_{what}")
        return insert_before(graph, node, op, list(inputs), name, axis)

    for node in planned.narrowed:
        x = input_of(node)
        weight, scales = weights.of(node, as_columns=False)
        if x not in dequantised:
            step = np.asarray(_step(thresholds.get(x.name or ""), x, node, source), np.float32)
            scale = add_constant(graph, names(f"{x.name}_scale"), step)
            integers = insert(node, "QuantizeLinear", "input", x, scale, zero)
            dequantised[x] = insert(node, "DequantizeLinear", "input", integers, scale, zero)
        if weight not in dequantised:
            axis = 0 if is_transposed(node) else 1
            dequantised[weight] = insert(
                node, "DequantizeLinear", "weight", weight, scales, axis=axis
            )
        node.replace_input_with(0, dequantised[x])
        node.replace_input_with(1, dequantised[weight])
    return planned.write(destination, recipe="static")


def _step(threshold: float | None, x: ir.Value, reader: ir.Node, source: Path) -> float:
    """Return the distance of two INT8 values of a tensor.

    Raises:
        ArtifactError: The threshold is missing, or is not a number of at least 0.
    """
    if threshold is None or not (math.isfinite(threshold) and threshold >= 0):
        raise ArtifactError(
            f"{source.name}: no usable range for {x.name!r}, which {layer_of(reader)} reads "
            f"(got {threshold})",
            hint="calibrate this artifact itself",
        )
    step = threshold / LARGEST
    return step if step >= np.finfo(np.float32).tiny else 1.0  # 1 for a tensor of zeros

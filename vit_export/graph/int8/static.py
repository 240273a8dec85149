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
from vit_export.graph.builder import (
    UniqueNames,
    add_constant,
    insert_before,
    remove_unread_constants,
)
from vit_export.graph.int8.select import (
    Int8Weights,
    Plan,
    input_name,
    input_of,
    is_transposed,
    plan,
)
from vit_export.graph.int8.weights import LARGEST
from vit_export.graph.io import save_graph
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
    for node in planned.narrowed:
        threshold = thresholds.get(input_name(node))
        if threshold is None or not (math.isfinite(threshold) and threshold >= 0):
            raise ArtifactError(
                f"{source.name}: no usable range for {input_name(node)!r}, which "
                f"{layer_of(node)} reads (got {threshold})",
                hint="calibrate this artifact itself",
            )
    _Static(planned, thresholds).convert()
    save_graph(planned.model, destination)
    return Conversion(recipe="static", planned=len(planned.planned), narrowed=len(planned.narrowed))


class _Static:
    """Conversion of one graph, in place."""

    def __init__(self, planned: Plan, thresholds: Mapping[str, float]) -> None:
        self.graph, self.nodes = planned.model.graph, planned.narrowed
        self.thresholds = thresholds
        self.names = UniqueNames(self.graph)
        self.weights = Int8Weights(self.graph, self.names)
        self.zero = add_constant(self.graph, self.names("int8_zero"), np.zeros((), np.int8))
        self.inputs: dict[ir.Value, ir.Value] = {}  # float32 tensors to their dequantised form
        self.matrices: dict[ir.Value, ir.Value] = {}  # INT8 weights to their dequantised form

    def convert(self) -> None:
        for node in self.nodes:
            x = input_of(node)
            weight, scales = self.weights.of(node, as_columns=False)
            if x not in self.inputs:
                self.inputs[x] = self._quantised_input(x, node)
            if weight not in self.matrices:
                axis = 0 if is_transposed(node) else 1
                self.matrices[weight] = self._insert(
                    node, "DequantizeLinear", "weight", weight, scales, axis=axis
                )
            node.replace_input_with(0, self.inputs[x])
            node.replace_input_with(1, self.matrices[weight])
        remove_unread_constants(self.graph)

    def _quantised_input(self, x: ir.Value, reader: ir.Node) -> ir.Value:
        step = np.float32(self.thresholds[x.name or ""] / LARGEST)
        if step < np.finfo(np.float32).tiny:
            step = np.float32(1)  # a tensor of zeros
        scale = add_constant(self.graph, self.names(f"{x.name}_scale"), np.asarray(step))
        quantised = self._insert(reader, "QuantizeLinear", "input", x, scale, self.zero)
        return self._insert(reader, "DequantizeLinear", "input", quantised, scale, self.zero)

    def _insert(
        self, node: ir.Node, op_type: str, suffix: str, *inputs: ir.Value, **attributes: int
    ) -> ir.Value:
        name = self.names(f"{layer_of(node)}/{op_type}_{suffix}")
        return insert_before(self.graph, node, op_type, list(inputs), name, attributes)

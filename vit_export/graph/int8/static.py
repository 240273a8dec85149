"""ONNX to INT8 ONNX whose activations have fixed ranges, from calibration ("static").

QuantizeLinear and DequantizeLinear stand around what is narrowed (QDQ), which ONNX Runtime and
TensorRT both read: activations are INT8 with one scale per tensor and zero point 0, as TensorRT
demands, weights INT8 per output channel. Only the inputs and weights of products with a constant
matrix are quantised; everything else, their outputs included, stays float32.

ONNX Runtime computes a MatMul of this form in integers (`MatMulIntegerToFloat`). A Gemm it
computes in float32 from the same dequantised numbers, since its integer kernel wants a bias of
INT32, which TensorRT does not read: of a Vision Transformer that is the head alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from vit_export.artifact.manifest import Conversion
from vit_export.errors import ArtifactError
from vit_export.graph.int8.select import (
    Names,
    Plan,
    Weights,
    drop_unread,
    initializer,
    input_name,
    is_transposed,
    plan,
)
from vit_export.graph.int8.weights import LARGEST
from vit_export.graph.io import save_graph
from vit_export.graph.layers import layer_of, weight_of


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
        thresholds: The largest magnitude that each of `planned_tensors` is given; what
            lies beyond is clipped. `calibration.Ranges.threshold` finds them.
        keep: Layers that stay in float32, e.g. `"blocks.3.mlp.fc2"`.

    Returns:
        What was done; `quantised_nodes` of the written file must equal its `narrowed`.

    Raises:
        ArtifactError: The source is damaged, is not float32, has no product to narrow, or a
            tensor has no threshold, or none that is a positive number.
        UsageError: A layer to keep is not among those planned.
    """
    found = plan(source, keep)
    for node in found.narrowed:
        threshold = thresholds.get(input_name(node))
        if threshold is None or not (math.isfinite(threshold) and threshold >= 0):
            raise ArtifactError(
                f"{source.name}: no usable range for {input_name(node)!r}, which "
                f"{layer_of(node)} reads (found: {threshold}); calibrate this artifact itself"
            )
    _Static(found, thresholds).apply()
    save_graph(found.model, destination)
    return Conversion(recipe="static", planned=len(found.planned), narrowed=len(found.narrowed))


class _Static:
    """One graph being converted, in place."""

    def __init__(self, found: Plan, thresholds: Mapping[str, float]) -> None:
        self.graph, self.nodes, self.thresholds = found.model.graph, found.narrowed, thresholds
        self.name = Names(self.graph)
        self.weights = Weights(self.graph, self.name)
        self.zero = initializer(self.graph, self.name("int8_zero"), np.zeros((), np.int8))
        self.rounded: dict[ir.Value, ir.Value] = {}
        self.dequantised: dict[ir.Value, ir.Value] = {}

    def apply(self) -> None:
        """Quantise what every node of the plan reads."""
        read = [value for node in self.nodes if (value := weight_of(node)) is not None]
        for node in self.nodes:
            x = node.inputs[0]
            if x is None:
                raise ValueError(f"{node.name} has no input")
            weight, scales = self.weights.of(node, as_columns=False)
            if x not in self.rounded:
                self.rounded[x] = self._rounded(x, node)
            if weight not in self.dequantised:
                axis = 0 if is_transposed(node) else 1
                self.dequantised[weight] = self._before(
                    node, "DequantizeLinear", [weight, scales], "weight", {"axis": axis}
                )
            node.replace_input_with(0, self.rounded[x])
            node.replace_input_with(1, self.dequantised[weight])
        drop_unread(self.graph, read)

    def _rounded(self, x: ir.Value, reader: ir.Node) -> ir.Value:
        """An activation that went through INT8; made once, for all readers."""
        threshold = self.thresholds[x.name or ""]
        step = np.float32(threshold / LARGEST)
        if step < np.finfo(np.float32).tiny:
            step = np.float32(1)  # a tensor of zeros
        scale = initializer(self.graph, self.name(f"{x.name}_scale"), np.asarray(step))
        quantised = self._before(reader, "QuantizeLinear", [x, scale, self.zero], "input")
        return self._before(reader, "DequantizeLinear", [quantised, scale, self.zero], "input")

    def _before(
        self,
        node: ir.Node,
        op_type: str,
        inputs: list[ir.Value],
        what: str,
        attributes: dict[str, int] | None = None,
    ) -> ir.Value:
        name = self.name(f"{layer_of(node)}/{op_type}_{what}")
        made = ir.node(op_type, inputs, attributes, name=name)
        made.outputs[0].name = name
        self.graph.insert_before(node, made)
        return made.outputs[0]

"""Outliers of activations, moved into the weights that read them: SmoothQuant, folded exactly.

A Vision Transformer has channels after LayerNormalization that are many times larger than the
rest; one INT8 scale for all then leaves little to the others. Dividing channel j by

    s[j] = max|X[:, j]| ** alpha / max|W[j, :]| ** (1 - alpha)

in gamma and beta, and multiplying row j of the weights by it, computes the same (Xiao et al.,
arXiv 2211.10438, equation 4). Here s is rounded to a power of two: then every product and sum in
float32 is the same to the bit, and what was measured of the fp32 artifact still holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vit_export.errors import ArtifactError, UsageError
from vit_export.graph.int8.select import (
    Names,
    drop_unread,
    initializer,
    is_planned,
    is_transposed,
    lazy_initializer,
    plan,
)
from vit_export.graph.io import save_graph

LARGEST_EXPONENT = 16  # of a factor: far from where float32 ends
Float32 = NDArray[np.float32]


def smooth(
    source: Path,
    destination: Path,
    channel_absmax: Mapping[str, NDArray[np.float32]],
    *,
    alpha: float = 0.5,
) -> int:
    """Even out the outputs of LayerNormalization, in float32.

    Done wherever the output of a LayerNormalization is read by products with constant matrices
    and by nothing else. Ranges have to be calibrated again on the file written.

    Args:
        source: An .onnx file in float32.
        destination: File to write; its weights go to `destination` + `.data`.
        channel_absmax: Largest magnitude per channel, float32 (C,), by tensor:
            `calibration.Ranges.channel_absmax`.
        alpha: How much of the difficulty moves: 0 none, 1 all.

    Returns:
        How many LayerNormalizations were changed.

    Raises:
        ArtifactError: The source is damaged, is not float32, or a tensor has no statistics.
        UsageError: alpha lies outside of [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise UsageError(f"alpha is {alpha}, expected a number from 0 to 1")
    model = plan(source).model
    graph, names, changed = model.graph, Names(model.graph), 0
    for norm in list(graph):
        readers = _readers(norm)
        if not readers:
            continue
        tensor = norm.outputs[0].name or ""
        if tensor not in channel_absmax:
            raise ArtifactError(
                f"{source.name}: no statistics of {tensor!r}; calibrate this artifact itself"
            )
        factors = _factors(channel_absmax[tensor], [_rows_absmax(n) for n in readers], alpha)
        if (factors != 1).any():
            _fold(graph, names, norm, readers, factors)
            changed += 1
    save_graph(model, destination)
    return changed


def _readers(norm: ir.Node) -> list[ir.Node]:
    """The products that alone read a LayerNormalization; none where others read it too."""
    if norm.op_type != "LayerNormalization" or norm.domain or norm.outputs[0].is_graph_output():
        return []
    if any(v is not None and not v.is_initializer() for v in norm.inputs[1:]):
        return []
    uses = list(norm.outputs[0].uses())
    readers = [use.node for use in uses if use.idx == 0 and is_planned(use.node)]
    return readers if len(readers) == len(uses) else []


def _rows_absmax(node: ir.Node) -> Float32:
    """Largest magnitude of a weight per input channel, float32 (K,)."""
    weight = _constant(node, 1)
    return np.asarray(np.abs(weight.numpy()).max(axis=0 if is_transposed(node) else 1))


def _factors(activations: Float32, weights: Sequence[Float32], alpha: float) -> Float32:
    """What each channel is divided by, powers of two; 1 where a side is zero. float32 (K,)."""
    reach, rows = np.asarray(activations, np.float64), np.maximum.reduce(list(weights))
    if reach.shape != rows.shape:
        raise ArtifactError(
            f"statistics of {reach.size} channels for a weight of {rows.size} rows; calibrate "
            "this artifact itself"
        )
    alive = (reach > 0) & (rows > 0)
    exponents = alpha * np.log2(reach, where=alive, out=np.zeros_like(reach)) - (
        1 - alpha
    ) * np.log2(rows, where=alive, out=np.zeros_like(reach))
    limited = np.clip(np.rint(exponents), -LARGEST_EXPONENT, LARGEST_EXPONENT)
    return np.asarray(np.exp2(limited), np.float32)


def _fold(
    graph: ir.Graph, names: Names, norm: ir.Node, readers: list[ir.Node], factors: Float32
) -> None:
    """Divide a norm's gamma and beta by the factors and multiply the readers' weights.

    Each gets constants of its own, since equal ones may be shared between layers.
    """
    for i in range(1, len(norm.inputs)):
        if norm.inputs[i] is not None:
            _scale(graph, names, norm, i, np.float32(1) / factors)
    for node in readers:
        _scale(graph, names, node, 1, factors if is_transposed(node) else factors[:, None])


def _scale(graph: ir.Graph, names: Names, node: ir.Node, at: int, by: Float32) -> None:
    old, tensor = node.inputs[at], _constant(node, at)
    name = names(f"{node.name}.smoothed_{('weight', 'bias')[at - 1]}")
    shape = ir.Shape(np.broadcast_shapes(tuple(tensor.shape.numpy()), by.shape))

    def values() -> Any:
        return np.asarray(tensor.numpy() * by, np.float32)

    if tensor.nbytes < 1 << 16:
        new = initializer(graph, name, values())
    else:
        new = lazy_initializer(graph, name, ir.DataType.FLOAT, shape, values)
    node.replace_input_with(at, new)
    if old is not None:
        drop_unread(graph, [old])


def _constant(node: ir.Node, at: int) -> ir.TensorProtocol:
    value = node.inputs[at]
    if value is None or value.const_value is None:
        raise ValueError(f"{node.name} has no constant at input {at}")
    return value.const_value

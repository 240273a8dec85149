"""SmoothQuant: move outliers of activations into the weights that read them.

Some channels of a Vision Transformer's LayerNormalization are many times larger than the others,
so that one INT8 scale leaves the others few levels. Dividing channel j of gamma and beta by

    s[j] = max|X[:, j]| ** alpha / max|W[j, :]| ** (1 - alpha)

and multiplying row j of the weights by it computes the same (Xiao et al., arXiv 2211.10438,
equation 4). Here s is rounded to a power of two, so that every product and sum in float32 stays
the same to the bit, and the fp32 artifact's certificate still holds.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from vit_export.graph.builder import add_constant, constant_of, lazy_tensor
from vit_export.graph.int8.select import Int8Conversion, is_planned, is_transposed
from vit_export.graph.int8.weights import Float32

LARGEST_EXPONENT = 16  # of a factor: far from the limits of float32


def smooth(
    source: Path, destination: Path, channel_absmax: Mapping[str, Float32], *, alpha: float = 0.5
) -> int:
    """Smooth each output of LayerNormalization that only products with constant matrices read.

    `channel_absmax` gives the largest magnitude per channel (C,) of each of `planned_tensors`. The
    file written is float32 and has to be calibrated again. Returns the number of
    LayerNormalizations that were changed.
    """
    conversion, changed = Int8Conversion(source), 0
    for norm in list(conversion.graph):
        readers = _readers(norm)
        if not readers:
            continue
        rows = [
            np.abs(constant_of(node.inputs[1]).numpy()).max(axis=0 if is_transposed(node) else 1)
            for node in readers
        ]
        absmax = channel_absmax[norm.outputs[0].name or ""]
        factors = _factors(absmax, np.maximum.reduce(rows), alpha)
        if (factors == 1).all():
            continue
        changed += 1
        for i in range(1, len(norm.inputs)):
            if norm.inputs[i] is not None:
                _scale(conversion, norm, i, np.float32(1) / factors)
        for node in readers:
            _scale(conversion, node, 1, factors if is_transposed(node) else factors[:, None])
    conversion.write(destination, recipe="smooth")
    return changed


def _readers(norm: ir.Node) -> list[ir.Node]:
    """Return the products that read a LayerNormalization; none where other nodes read it too."""
    if norm.op_type != "LayerNormalization" or norm.domain or norm.outputs[0].is_graph_output():
        return []
    if any(v is not None and not v.is_initializer() for v in norm.inputs[1:]):
        return []
    uses = _uses(norm.outputs[0])
    readers = [node for node, index in uses if index == 0 and is_planned(node)]
    return readers if len(readers) == len(uses) else []


def _uses(value: ir.Value) -> list[tuple[ir.Node, int]]:
    """Return the nodes and input numbers that read a tensor, or slices of it with all channels."""
    uses = []
    for node, index in value.uses():
        sliced = node.outputs[0]
        whole = _keeps_channels(node, value) and not sliced.is_graph_output()
        uses += _uses(sliced) if whole else [(node, index)]
    return uses


def _keeps_channels(node: ir.Node, value: ir.Value) -> bool:
    """Whether a node is a slice of a tensor along other axes than the last one."""
    if node.op_type != "Slice" or node.inputs[0] is not value or value.shape is None:
        return False
    axes = node.inputs[3] if len(node.inputs) > 3 else None
    if axes is None or not axes.is_initializer():
        return False
    return -1 not in (a if a < 0 else a - len(value.shape) for a in constant_of(axes).numpy())


def _factors(columns: Float32, rows: Float32, alpha: float) -> Float32:
    """Return the divisor of each channel: a power of two, 1 for a channel of zeros; float32 (K,).

    The arguments are the largest magnitudes per channel and per row of the weights, (K,).
    """
    alive = (columns > 0) & (rows > 0)
    columns, rows = np.where(alive, (columns, rows), 1).astype(np.float64)
    exponents = alpha * np.log2(columns) - (1 - alpha) * np.log2(rows)
    limited = np.clip(np.rint(exponents), -LARGEST_EXPONENT, LARGEST_EXPONENT)
    return np.asarray(np.exp2(limited), np.float32)


def _scale(conversion: Int8Conversion, node: ir.Node, index: int, by: Float32) -> None:
    """Give a node its own constant: its input times `by`; other nodes may share the old one."""
    tensor = constant_of(node.inputs[index])
    scaled = lazy_tensor(
        conversion.free_name(f"{node.name}.smoothed_{('weight', 'bias')[index - 1]}"),
        ir.DataType.FLOAT,
        np.broadcast_shapes(tensor.shape.numpy(), by.shape),
        lambda: np.asarray(tensor.numpy() * by, np.float32),
    )
    node.replace_input_with(index, add_constant(conversion.graph, scaled))

"""Emulate half precision in float32: round the result of every operation to the half type.

ONNX Runtime's CPU provider has few half-precision kernels: it computes in float32 and skips the
rounding between two nodes. A product of 80000, infinite in FP16 on every GPU, goes unnoticed
there, and BF16 does not run at all. The emulated graph rounds where a GPU rounds: after every
operation, whose inner sums are float32 on a GPU too. It is used to validate, and never published.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from vit_export.graph.builder import constant_of, insert_cast, lazy_tensor
from vit_export.graph.io import open_graph, save_graph

HALF_TYPES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
FLOAT = ir.TensorType(ir.DataType.FLOAT)


def to_rounded(source: Path, destination: Path) -> None:
    """Write the float32 emulation of a half-precision artifact; tensors keep their names.

    Args:
        source: A strongly typed .onnx file with float16 or bfloat16 values.
        destination: File to write; its weights go to `destination` + `.data`.
    """
    model = open_graph(source)
    model.metadata_props.clear()  # the certificate is the artifact's
    graph = model.graph
    for value in graph.initializers.values():
        if value.dtype in HALF_TYPES:
            _widen_weight(value)
    nodes = list(graph)
    for value in graph.inputs:
        if value.dtype in HALF_TYPES:
            _round_input(graph, value, value.dtype)
    for node in nodes:
        is_cast = node.op_type == "Cast" and not node.domain
        if is_cast and ir.DataType(node.attributes["to"].as_int()) not in HALF_TYPES:
            continue  # from half precision: its input is rounded already
        for value in node.outputs:
            if value.dtype in HALF_TYPES:
                _round_output(graph, value, value.dtype, is_half=is_cast)
    save_graph(model, destination)


def _widen_weight(value: ir.Value) -> None:
    tensor, name, shape = constant_of(value), value.name or "", value.shape or ir.Shape(())
    value.const_value = lazy_tensor(
        name, ir.DataType.FLOAT, shape, lambda: np.asarray(tensor.numpy()).astype(np.float32)
    )
    value.type = FLOAT


def _round_input(graph: ir.Graph, value: ir.Value, half: ir.DataType | None) -> None:
    """Make a half-precision graph input float32, and round it to the half type."""
    readers = list(value.uses())
    value.type = FLOAT
    _replace(graph, value, readers, _rounded(graph, value, half, f"{value.name}/rounded"))


def _round_output(
    graph: ir.Graph, value: ir.Value, half: ir.DataType | None, *, is_half: bool
) -> None:
    """Make what a node computes float32, and let its readers read it rounded.

    Args:
        graph: Changed in place.
        value: Output of a node; the rounded tensor gets its name.
        half: Its type.
        is_half: Whether the node is a Cast to the half type, which stays.
    """
    name, readers = value.name or "", list(value.uses())
    value.name = f"{name}/half" if is_half else f"{name}/exact"
    if not is_half:
        value.type = FLOAT
        rounded = _rounded(graph, value, half, name)
    else:
        rounded = insert_cast(graph, value, ir.DataType.FLOAT, name, op_name="Round")
    _replace(graph, value, readers, rounded)


def _rounded(graph: ir.Graph, value: ir.Value, half: ir.DataType | None, name: str) -> ir.Value:
    if half is None:
        raise ValueError(f"{name} has no type")
    narrow = insert_cast(graph, value, half, f"{name}/half")
    return insert_cast(graph, narrow, ir.DataType.FLOAT, name, op_name="Round")


def _replace(
    graph: ir.Graph, old: ir.Value, readers: Sequence[tuple[ir.Node, int]], new: ir.Value
) -> None:
    for reader, i in readers:
        reader.replace_input_with(i, new)
    for i, value in enumerate(graph.outputs):
        if value is old:
            graph.outputs[i] = new

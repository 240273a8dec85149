"""Emulate half precision in float32: round the result of every operation to the half type.

ONNX Runtime's CPU provider has few half-precision kernels: it computes in float32 and skips the
rounding between two nodes. A product of 80000, infinite in FP16 on every GPU, goes unnoticed
there, and BF16 does not run at all. The emulated graph rounds where a GPU rounds: after every
operation, whose inner sums are float32 on a GPU too. It is used to validate, and never published.
"""

from pathlib import Path

import numpy as np
import onnx_ir as ir

from vit_export.graph.builder import constant_of, insert_cast, lazy_tensor
from vit_export.graph.io import open_graph, save_graph

HALF_TYPES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
FLOAT = ir.TensorType(ir.DataType.FLOAT)


def to_rounded(source: Path, destination: Path) -> None:
    """Write the float32 emulation of a half-precision artifact; tensors keep their names."""
    model = open_graph(source)
    model.metadata_props.clear()  # the certificate is the artifact's
    graph = model.graph
    for value in graph.initializers.values():
        if value.dtype in HALF_TYPES:
            _widen_weight(value)
    nodes = list(graph)
    for value in graph.inputs:
        _round(graph, value, name=f"{value.name}/rounded", exact=value.name or "")
    for node in nodes:
        is_cast = node.op_type == "Cast" and not node.domain
        if is_cast and ir.DataType(node.attributes["to"].as_int()) not in HALF_TYPES:
            continue  # from half precision: its input is rounded already
        for value in node.outputs:
            exact = f"{value.name}/half" if is_cast else f"{value.name}/exact"
            _round(graph, value, name=value.name or "", exact=exact, is_half=is_cast)
    save_graph(model, destination)


def _widen_weight(value: ir.Value) -> None:
    tensor, value.type = constant_of(value), FLOAT
    value.const_value = lazy_tensor(
        tensor.name or "",
        FLOAT.dtype,
        tensor.shape.numpy(),
        lambda: np.asarray(tensor.numpy()).astype(np.float32),
    )


def _round(
    graph: ir.Graph, value: ir.Value, *, name: str, exact: str, is_half: bool = False
) -> None:
    """Make a half-precision value float32; readers of it read `name`, rounded to the half type.

    The value itself is renamed to `exact`. A Cast to the half type (`is_half`) stays one.
    """
    half = value.dtype
    if half is None or half not in HALF_TYPES:
        return
    readers, value.name, narrow = list(value.uses()), exact, value
    if not is_half:
        value.type = FLOAT
        narrow = insert_cast(graph, value, half, f"{name}/half")
    rounded = insert_cast(graph, narrow, ir.DataType.FLOAT, name, op_name="Round")
    for reader, i in readers:
        reader.replace_input_with(i, rounded)
    for i, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[i] = rounded

"""A half-precision graph computed in float32, with every result rounded to its type.

ONNX Runtime's CPU provider has few half-precision kernels: it computes in float32 and leaves out
the roundings between two nodes. A product of 80000, infinite in FP16 on every GPU, so passes
unseen; BF16 it cannot run at all. This form rounds where a GPU rounds: after every operation,
whose inner sums are in float32 there too. It is for measuring, not for shipping.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from vit_export.graph.io import open_graph, save_graph

HALF_TYPES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


def to_rounded(source: Path, destination: Path) -> None:
    """Write the rounded float32 form of a half-precision artifact; tensor names stay.

    Args:
        source: A strongly typed .onnx file with float16 or bfloat16 values.
        destination: File to write; its weights go to `destination` + `.data`.
    """
    model = open_graph(source)
    model.metadata_props.clear()  # it is not the artifact, and has no certificate
    graph = model.graph
    for value in list(graph.initializers.values()):
        if value.dtype in HALF_TYPES:
            _widen_weight(value)
    nodes = list(graph)
    for value in graph.inputs:
        if value.dtype in HALF_TYPES:
            _round_input(graph, value)
    for node in nodes:
        is_cast = node.op_type == "Cast" and not node.domain
        if is_cast and ir.DataType(node.attributes["to"].as_int()) not in HALF_TYPES:
            continue  # from half precision: what comes in was rounded where it was made
        for value in node.outputs:
            if value.dtype in HALF_TYPES:
                _round(graph, node, value, already=is_cast)
    save_graph(model, destination)


def _widen_weight(value: ir.Value) -> None:
    tensor = value.const_value
    if tensor is None:
        raise ValueError(f"{value.name} has no value")
    name = value.name

    def widen() -> ir.TensorProtocol:
        return ir.Tensor(np.asarray(tensor.numpy()).astype(np.float32), name=name)

    value.const_value = ir.LazyTensor(
        widen, dtype=ir.DataType.FLOAT, shape=value.shape or ir.Shape(()), name=name
    )
    value.type = ir.TensorType(ir.DataType.FLOAT)


def _round_input(graph: ir.Graph, value: ir.Value) -> None:
    """Take float32 instead of a half type, and round it."""
    half, uses = value.dtype, list(value.uses())
    if half is None:
        raise ValueError(f"{value.name} has no type")
    value.type = ir.TensorType(ir.DataType.FLOAT)
    inner = ir.Value(name=f"{value.name}/half", type=ir.TensorType(half), shape=value.shape)
    rounded = ir.Value(name=f"{value.name}/rounded", type=value.type, shape=value.shape)
    casts = [
        ir.node("Cast", [value], {"to": half.value}, outputs=[inner]),
        ir.node("Cast", [inner], {"to": ir.DataType.FLOAT.value}, outputs=[rounded]),
    ]
    for i, cast in enumerate(casts):
        cast.name = f"{value.name}/Round_{i}"
    graph.insert_before(graph[0], casts)
    for user, i in uses:
        user.replace_input_with(i, rounded)


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value, *, already: bool) -> None:
    """Round what a node gives; the rounded value takes its name."""
    half, name = value.dtype, value.name
    if half is None:
        raise ValueError(f"{name} has no type")
    uses, outputs = list(value.uses()), [i for i, v in enumerate(graph.outputs) if v is value]
    inner = value
    inserted = []
    if not already:
        value.name = f"{name}/exact"
        value.type = ir.TensorType(ir.DataType.FLOAT)
        inner = ir.Value(name=f"{name}/half", type=ir.TensorType(half), shape=value.shape)
        inserted.append(ir.node("Cast", [value], {"to": half.value}, outputs=[inner]))
    else:
        value.name = f"{name}/half"
    rounded = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=value.shape)
    to_float = {"to": ir.DataType.FLOAT.value}
    inserted.append(ir.node("Cast", [inner], to_float, outputs=[rounded]))
    for i, new in enumerate(inserted):
        new.name = f"{name}/Round_{i}"
    graph.insert_after(node, inserted)
    for user, i in uses:
        user.replace_input_with(i, rounded)
    for i in outputs:
        graph.outputs[i] = rounded

"""Changes of a graph that every conversion needs: constants, casts, clean-up.

onnx_ir's passes do the rest, but for three: `RemoveUnusedNodesPass` would remove `features`, which
the gate measures, where they are no graph output; `NameFixPass` numbers nodes, but weights need
the name of their module; `ShapeInferencePass` logs a failed inference and goes on.
"""

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import ClearMetadataAndDocStringPass


def add_constant(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """Add an initializer with the name, type and shape of a tensor."""
    value = ir.val(tensor.name, const_value=tensor)
    graph.register_initializer(value)
    return value


def lazy_tensor(
    name: str, dtype: ir.DataType, shape: Sequence[int], compute: Callable[[], NDArray[Any]]
) -> ir.LazyTensor:
    """Return a tensor whose values are computed when the file is written, and not kept."""
    return ir.LazyTensor(
        lambda: ir.Tensor(compute(), dtype=dtype, name=name), dtype, ir.Shape(shape), name=name
    )


def constant_of(value: ir.Value | None) -> ir.TensorProtocol:
    """Return the tensor of an initializer."""
    if value is None or value.const_value is None:
        raise ValueError(f"{value.name if value is not None else 'the input'} is not a constant")
    return value.const_value


def insert_cast(
    graph: ir.Graph, value: ir.Value, dtype: ir.DataType, name: str, *, op_name: str = "Cast"
) -> ir.Value:
    """Insert a Cast with the output `name` behind the node that computes a value.

    For a graph input it goes to the start. The readers of the value are not changed.
    """
    out = ir.Value(name=name, type=ir.TensorType(dtype), shape=value.shape)
    cast = ir.node("Cast", [value], {"to": dtype.value}, outputs=[out], name=f"{name}/{op_name}")
    producer = value.producer()
    if producer is not None:
        graph.insert_after(producer, cast)
    else:
        graph.insert_before(graph[0], cast)
    return out


def remove_unread_constants(graph: ir.Graph) -> None:
    """Remove the initializers that no node reads and that are no graph output."""
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def clear_origin(model: ir.Model) -> None:
    """Remove metadata and documentation, which hold source paths and stack traces."""
    ClearMetadataAndDocStringPass()(model)  # of graphs and nodes
    holders: list[ir.Model | ir.Value] = [model]
    for graph in model.graphs():
        values = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
        holders += (*graph.inputs, *values.values())
    for holder in holders:
        holder.metadata_props.clear()
        holder.doc_string = None

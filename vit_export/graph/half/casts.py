"""Make a graph strongly typed: convert weights, and insert a Cast wherever precisions meet."""

from __future__ import annotations

import onnx_ir as ir

from vit_export.graph.builder import (
    add_constant,
    constant_of,
    insert_cast,
    lazy_tensor,
    remove_unread_constants,
)
from vit_export.graph.half.plan import Plan, Width, is_float
from vit_export.graph.half.types import Half


def narrow_weights(plan: Plan) -> set[str]:
    """Return the names of the weights that narrow nodes read."""
    return {
        value.name or ""
        for node, width in plan.items()
        for value in node.inputs
        if width == "narrow" and value is not None and is_float(value) and value.is_initializer()
    }


def apply_plan(graph: ir.Graph, plan: Plan, half: Half, *, half_io: bool) -> None:
    """Convert a float32 graph as planned, in place.

    A weight that nodes of both precisions read is stored twice. All readers of a tensor share one
    Cast. Graph outputs, and every tensor that a node computes, keep their names.
    """
    io_width: Width = "narrow" if half_io else "wide"
    dtypes = {"narrow": half.dtype, "wide": ir.DataType.FLOAT}
    widths = _widths(graph, plan, io_width)
    converted: dict[tuple[ir.Value, Width], ir.Value] = {}

    def in_width(value: ir.Value, width: Width) -> ir.Value:
        if (value, width) not in converted:
            name = f"{value.name}/{dtypes[width].numpy()}"
            if value.is_initializer():
                tensor, shape = constant_of(value), value.shape or ir.Shape(())
                weight = lazy_tensor(name, half.dtype, shape, lambda: half.round(tensor.numpy()))
                converted[value, width] = add_constant(graph, weight)
            else:
                converted[value, width] = insert_cast(graph, value, dtypes[width], name)
        return converted[value, width]

    for node, width in plan.items():
        for i, value in enumerate(node.inputs):
            if value is not None and is_float(value) and widths[value] != width:
                node.replace_input_with(i, in_width(value, width))
    for value, width in widths.items():
        if not value.is_initializer():
            value.type = ir.TensorType(dtypes[width])
    for i, value in enumerate(graph.outputs):
        width = widths.get(value, io_width)
        if width != io_width and not value.is_initializer():
            name = value.name or ""
            value.name = f"{name}/{dtypes[width].numpy()}"
            graph.outputs[i] = insert_cast(graph, value, dtypes[io_width], name)
    remove_unread_constants(graph)


def _widths(graph: ir.Graph, plan: Plan, io_width: Width) -> dict[ir.Value, Width]:
    """Return the width of every float value before casts are inserted; weights are wide."""
    widths: dict[ir.Value, Width] = dict.fromkeys(graph.initializers.values(), "wide")
    widths |= {value: io_width for value in graph.inputs if is_float(value)}
    for node, width in plan.items():
        widths |= {value: width for value in node.outputs if is_float(value)}
    return widths

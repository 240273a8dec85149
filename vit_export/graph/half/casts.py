"""Make a graph strongly typed: convert weights, and insert a Cast wherever precisions meet."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from vit_export.graph.builder import (
    add_lazy_constant,
    constant_of,
    insert_cast,
    remove_unread_constants,
)
from vit_export.graph.half.plan import Plan, Width, is_float
from vit_export.graph.half.types import Half


def narrow_weights(graph: ir.Graph, plan: Plan) -> set[str]:
    """Return the names of the weights that narrow nodes read."""
    return {value.name or "" for _, _, value in _float_inputs(graph, plan, "narrow")
            if value.is_initializer()}  # fmt: skip


def apply_plan(graph: ir.Graph, plan: Plan, half: Half, *, half_io: bool) -> None:
    """Convert a float32 graph as planned, in place.

    A weight that nodes of both precisions read is stored twice. All readers of a tensor share one
    Cast. Graph outputs, and every tensor that a node computes, keep their names.
    """
    _Converter(graph, plan, half, half_io=half_io).convert()


def _float_inputs(
    graph: ir.Graph, plan: Plan, width: Width
) -> Iterator[tuple[ir.Node, int, ir.Value]]:
    for node in graph:
        if plan.get(node) != width:
            continue
        for i, value in enumerate(node.inputs):
            if value is not None and is_float(value):
                yield node, i, value


class _Converter:
    def __init__(self, graph: ir.Graph, plan: Plan, half: Half, *, half_io: bool) -> None:
        self.graph, self.plan, self.half = graph, plan, half
        self.io_width: Width = "narrow" if half_io else "wide"
        self.types = {"narrow": half.dtype, "wide": ir.DataType.FLOAT}
        self.converted: dict[tuple[str, Width], ir.Value] = {}  # by name and width of a value

    def convert(self) -> None:
        widths = self._widths()
        readers = [*_float_inputs(self.graph, self.plan, "narrow"),
                   *_float_inputs(self.graph, self.plan, "wide")]  # fmt: skip
        for node, i, value in readers:
            width = self.plan[node]
            if widths[value] != width:
                node.replace_input_with(i, self._in_width(value, width))
        for value, width in widths.items():
            if not value.is_initializer():
                value.type = ir.TensorType(self.types[width])
        self._cast_outputs(widths)
        remove_unread_constants(self.graph)

    def _widths(self) -> dict[ir.Value, Width]:
        """Return the width of every float value before casts are inserted; weights are wide."""
        widths: dict[ir.Value, Width] = dict.fromkeys(self.graph.initializers.values(), "wide")
        for value in self.graph.inputs:
            if is_float(value):
                widths[value] = self.io_width
        for node, width in self.plan.items():
            widths |= {value: width for value in node.outputs if is_float(value)}
        return widths

    def _in_width(self, value: ir.Value, width: Width) -> ir.Value:
        key = (value.name or "", width)
        if key not in self.converted:
            dtype = self.types[width]
            name = f"{value.name}/{dtype.numpy()}"
            if value.is_initializer():
                self.converted[key] = self._half_weight(value, name)
            else:
                self.converted[key] = insert_cast(self.graph, value, dtype, name)
        return self.converted[key]

    def _half_weight(self, weight: ir.Value, name: str) -> ir.Value:
        tensor, half = constant_of(weight), self.half
        shape = weight.shape or ir.Shape(())
        return add_lazy_constant(
            self.graph, name, half.dtype, shape, lambda: half.round(tensor.numpy())
        )

    def _cast_outputs(self, widths: dict[ir.Value, Width]) -> None:
        """Cast the graph outputs of another width than inputs and outputs should have."""
        for i, value in enumerate(self.graph.outputs):
            width = widths.get(value, self.io_width)
            if width == self.io_width or value.is_initializer():
                continue
            name = value.name or ""
            value.name = f"{name}/{self.types[width].numpy()}"
            out = insert_cast(self.graph, value, self.types[self.io_width], name)
            self.graph.outputs[i] = out

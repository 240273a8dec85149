"""Making a graph strongly typed: weights converted, and a Cast wherever precisions meet."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from vit_export.graph.half.plan import Plan, is_constant, is_float
from vit_export.graph.half.types import Half


def narrow_ports(graph: ir.Graph, plan: Plan) -> set[str]:
    """Names of the weights that narrow nodes read."""
    return {value.name or "" for _, _, value in _float_inputs(graph, plan, "narrow")
            if is_constant(value)}  # fmt: skip


def apply(graph: ir.Graph, plan: Plan, half: Half, *, half_io: bool) -> None:
    """Type a float32 graph as planned, in place.

    A weight that nodes of both precisions read is stored twice. One Cast serves all readers of
    a tensor. Names of graph outputs, and of every tensor that a node computes, stay.
    """
    _Typing(graph, plan, half).apply(half_io=half_io)


def _float_inputs(
    graph: ir.Graph, plan: Plan, width: str
) -> Iterator[tuple[ir.Node, int, ir.Value]]:
    for node in graph:
        if plan.get(node) != width:
            continue
        for i, value in enumerate(node.inputs):
            if value is not None and is_float(value):
                yield node, i, value


class _Typing:
    def __init__(self, graph: ir.Graph, plan: Plan, half: Half) -> None:
        self.graph, self.plan, self.half = graph, plan, half
        self.types = {"narrow": half.dtype, "wide": ir.DataType.FLOAT}
        self.cast: dict[tuple[str, str], ir.Value] = {}  # (value's name, width) to its Cast

    def apply(self, *, half_io: bool) -> None:
        width_of = self._widths(half_io)
        ports = [(*port, width) for width in ("narrow", "wide")
                 for port in _float_inputs(self.graph, self.plan, width)]  # fmt: skip
        for node, i, value, width in ports:
            if width_of[value] != width:
                node.replace_input_with(i, self._as(value, width))
        for value, width in width_of.items():
            if not is_constant(value):
                value.type = ir.TensorType(self.types[width])
        self._type_outputs("narrow" if half_io else "wide", width_of)
        for name in [n for n, value in self.graph.initializers.items() if not value.uses()]:
            if not self.graph.initializers[name].is_graph_output():
                del self.graph.initializers[name]

    def _widths(self, half_io: bool) -> dict[ir.Value, str]:
        """Of every float value, before any Cast; weights count as wide."""
        widths = dict.fromkeys(self.graph.initializers.values(), "wide")
        for value in self.graph.inputs:
            if is_float(value):
                widths[value] = "narrow" if half_io else "wide"
        for node, width in self.plan.items():
            widths |= {value: width for value in node.outputs if is_float(value)}
        return widths

    def _as(self, value: ir.Value, width: str) -> ir.Value:
        key = (value.name or "", width)
        if key not in self.cast:
            make = self._converted if is_constant(value) else self._cast
            self.cast[key] = make(value, width)
        return self.cast[key]

    def _converted(self, weight: ir.Value, width: str) -> ir.Value:
        """A copy of a weight in half precision, made when it is written."""
        tensor = weight.const_value
        if tensor is None:
            raise ValueError(f"{weight.name} has no value")
        half, name = self.half, f"{weight.name}/{self.half.dtype_name}"

        def convert() -> ir.TensorProtocol:
            return ir.Tensor(half.round(tensor.numpy()), dtype=half.dtype, name=name)

        lazy = ir.LazyTensor(
            convert, dtype=half.dtype, shape=weight.shape or ir.Shape(()), name=name
        )
        value = ir.Value(
            name=name, type=ir.TensorType(half.dtype), shape=weight.shape, const_value=lazy
        )
        self.graph.register_initializer(value)
        return value

    def _cast(self, value: ir.Value, width: str) -> ir.Value:
        dtype = self.types[width]
        name = f"{value.name}/{dtype.numpy()}"
        out = ir.Value(name=name, type=ir.TensorType(dtype), shape=value.shape)
        cast = ir.node("Cast", [value], {"to": dtype.value}, outputs=[out], name=f"{name}/Cast")
        producer = value.producer()
        if producer is not None:
            self.graph.insert_after(producer, cast)
        else:
            self.graph.insert_before(self.graph[0], cast)
        return out

    def _type_outputs(self, width: str, width_of: dict[ir.Value, str]) -> None:
        """Give graph outputs the type asked for, under their own names."""
        for i, value in enumerate(self.graph.outputs):
            if value not in width_of or width_of[value] == width or is_constant(value):
                continue
            name = value.name or ""
            inner = self.types[width_of[value]]
            value.name = f"{name}/{inner.numpy()}"
            out = ir.Value(name=name, type=ir.TensorType(self.types[width]), shape=value.shape)
            cast = ir.node(
                "Cast", [value], {"to": self.types[width].value}, outputs=[out], name=f"{name}/Cast"
            )
            producer = value.producer()
            if producer is None:
                raise ValueError(f"graph output {name} is computed by no node")
            self.graph.insert_after(producer, cast)
            self.graph.outputs[i] = out

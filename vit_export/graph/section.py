"""Add nodes to a graph in sections, whose name their names begin with."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir


class Section:
    """Records nodes and constants of one section of a graph, in the order of computation.

    Inputs are values, `None` where an optional input is left out, or numbers, lists and arrays,
    which become constants; whole numbers are int64.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []

    def __call__(self, op_type: str, *inputs: Any, **attributes: Any) -> ir.Value:
        """Add a node, and return its output."""
        return self.several(op_type, *inputs, count=1, **attributes)[0]

    def several(
        self, op_type: str, *inputs: Any, count: int, **attributes: Any
    ) -> Sequence[ir.Value]:
        """Add a node of several outputs, and return them."""
        name = f"{self.name}/{op_type}_{len(self.nodes)}"
        values = [x if x is None or isinstance(x, ir.Value) else self.constant(x) for x in inputs]
        outputs = [ir.Value(name=f"{name}:{i}" if i else name) for i in range(count)]
        self.nodes.append(ir.node(op_type, values, attributes, outputs=outputs, name=name))
        return outputs

    def constant(self, value: Any) -> ir.Value:
        """Add a constant."""
        name = f"{self.name}/constant_{len(self.constants)}"
        self.constants.append(ir.val(name, const_value=ir.tensor(np.asarray(value), name=name)))
        return self.constants[-1]

    def add_to(self, graph: ir.Graph, *, first: bool = False) -> None:
        """Put the nodes at the end of a graph, or at its start."""
        for value in self.constants:
            graph.register_initializer(value)
        if first and len(graph):
            graph.insert_before(graph[0], self.nodes)
        else:
            graph.extend(self.nodes)

"""Names that say where in the model a node stands; and nothing else about its origin.

torch's exporter writes source paths and stack traces into the metadata of every node and
numbers its values. What is kept of that is the module's path: a node is called
`blocks.0.attn.qkv/MatMul`, its weight `blocks.0.attn.qkv.weight`.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Collection

import onnx_ir as ir

_SCOPES = "pkg.torch.onnx.name_scopes"
WEIGHTED = frozenset({"MatMul", "Gemm", "Conv"})


def name_after_modules(model: ir.Model, *, prefix: str, keep: Collection[str]) -> None:
    """Rename nodes, values and weights after the module that computes them, in place.

    Args:
        model: What torch exported.
        prefix: Path of the exported module inside the wrapper, e.g. `"module."`.
        keep: Names of graph inputs and outputs, which stay.
    """
    graph = model.graph
    taken = set(keep)
    for value in list(graph.initializers.values()):
        if value.name is not None and value.name.startswith(prefix):
            _rename_initializer(graph, value, value.name.removeprefix(prefix), taken)
    used: Counter[str] = Counter()
    for node in graph:
        scope = _scope(node, prefix)
        base = f"{scope}/{node.op_type}" if scope else node.op_type
        used[base] += 1
        node.name = base if used[base] == 1 else f"{base}_{used[base]}"
        for i, value in enumerate(node.outputs):
            if value.name not in keep:
                value.name = node.name if i == 0 else f"{node.name}:{i}"
        if node.op_type in WEIGHTED and scope and len(node.inputs) > 1:
            weight = node.inputs[1]
            if weight is not None and _is_numbered(weight.name, graph):
                _rename_initializer(graph, weight, f"{scope}.weight", taken)


def _is_numbered(name: str | None, graph: ir.Graph) -> bool:
    """Whether it is an initializer that the exporter made, e.g. a transposed weight."""
    return name is not None and name.startswith("val_") and name in graph.initializers


def _rename_initializer(graph: ir.Graph, value: ir.Value, name: str, taken: set[str]) -> None:
    if name in taken or name in graph.initializers:
        return
    graph.initializers.pop(value.name or "")
    value.name = name
    graph.register_initializer(value)


def _scope(node: ir.Node, prefix: str) -> str:
    """Path of the innermost module that the node belongs to; empty for the outermost."""
    text = node.metadata_props.get(_SCOPES)
    modules = ast.literal_eval(text)[:-1] if text else []  # the last is the operation itself
    scope = str(modules[-1]) if modules else ""
    return "" if scope == prefix.rstrip(".") else scope.removeprefix(prefix)


def forget_origin(model: ir.Model) -> None:
    """Drop everything that tells where and when a model was exported, in place."""
    model.metadata_props.clear()
    model.doc_string = None
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        graph.metadata_props.clear()
        graph.doc_string = None
        for value in (*graph.inputs, *graph.initializers.values()):
            value.metadata_props.clear()
            value.doc_string = None
        for node in ir.traversal.RecursiveGraphIterator(graph):
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
                value.doc_string = None

"""Names of nodes and weights after the modules of the model.

torch's exporter numbers values and writes the module's path into the metadata of every node.
Here a node is renamed to `blocks.0.attn.qkv/MatMul`, and its weight to `blocks.0.attn.qkv.weight`.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Collection

import onnx_ir as ir

from vit_export.graph.layers import weight_of

_SCOPES = "pkg.torch.onnx.name_scopes"


def name_after_modules(model: ir.Model, *, prefix: str, keep: Collection[str]) -> None:
    """Rename nodes, values and weights after the module that computes them, in place.

    Args:
        model: Model of torch's exporter.
        prefix: Path of the exported module inside its wrapper, e.g. `"module."`.
        keep: Names of graph inputs and outputs, which do not change.
    """
    graph, taken = model.graph, set(keep)

    def rename_constant(value: ir.Value, name: str) -> None:
        if name not in taken and name not in graph.initializers:
            value.name = name

    for value in list(graph.initializers.values()):
        if value.name is not None and value.name.startswith(prefix):
            rename_constant(value, value.name.removeprefix(prefix))
    used: Counter[str] = Counter()
    for node in graph:
        scope = _scope(node, prefix)
        base = f"{scope}/{node.op_type}" if scope else node.op_type
        used[base] += 1
        node.name = base if used[base] == 1 else f"{base}_{used[base]}"
        for i, value in enumerate(node.outputs):
            if value.name not in keep:
                value.name = node.name if i == 0 else f"{node.name}:{i}"
        weight = weight_of(node)
        if scope and weight is not None and (weight.name or "").startswith("val_"):
            rename_constant(weight, f"{scope}.weight")  # the exporter made it, e.g. transposed


def _scope(node: ir.Node, prefix: str) -> str:
    """Return the path of the innermost module of a node; empty for the outermost module."""
    text = node.metadata_props.get(_SCOPES)
    modules = ast.literal_eval(text)[:-1] if text else []  # the last is the operation itself
    scope = str(modules[-1]) if modules else ""
    return "" if scope == prefix.rstrip(".") else scope.removeprefix(prefix)

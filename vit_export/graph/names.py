"""Names of nodes and weights after the modules of the model.

torch's exporter numbers values and writes the module's path into the metadata of every node.
Here a node is renamed to `blocks.0.attn.qkv/MatMul`, and its weight to `blocks.0.attn.qkv.weight`.
"""

import ast
from collections import Counter
from collections.abc import Collection

import onnx_ir as ir

from vit_export.graph.layers import weight_of

_SCOPES = "pkg.torch.onnx.name_scopes"
_PREFIX = "module."  # path of the exported module inside `Outputs`


def name_after_modules(model: ir.Model, *, keep: Collection[str]) -> None:
    """Rename nodes, values and weights in place; `keep` names the graph inputs and outputs."""
    graph = model.graph

    def rename_constant(value: ir.Value, name: str) -> None:
        if name not in keep and name not in graph.initializers:
            value.name = name

    for value in list(graph.initializers.values()):
        rename_constant(value, (value.name or "").removeprefix(_PREFIX))
    used: Counter[str] = Counter()
    for node in graph:
        scope = _scope(node)
        base = f"{scope}/{node.op_type}" if scope else node.op_type
        used[base] += 1
        node.name = base if used[base] == 1 else f"{base}_{used[base]}"
        for i, value in enumerate(node.outputs):
            if value.name not in keep:
                value.name = node.name if i == 0 else f"{node.name}:{i}"
        weight = weight_of(node)
        if scope and weight is not None and (weight.name or "").startswith("val_"):
            rename_constant(weight, f"{scope}.weight")  # the exporter made it, e.g. transposed


def _scope(node: ir.Node) -> str:
    """Return the path of the innermost module of a node; empty for the outermost module.

    A node that a rewrite of the exporter made has no metadata, and counts to its first reader.
    """
    readers = [use.node for use in node.outputs[0].uses()]
    if _SCOPES not in node.metadata_props and readers:
        return _scope(readers[0])
    modules = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))[:-1]  # last: the operation
    return f"{modules[-1]}.".removeprefix(_PREFIX).removesuffix(".") if modules else ""

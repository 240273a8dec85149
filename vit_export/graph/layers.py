"""The layers of a graph: which nodes hold weights, and in which block they stand.

A layer is a module's path, as `names.py` gives it to nodes: `blocks.3.mlp.fc2/MatMul` is of the
layer `blocks.3.mlp.fc2`. A node of another exporter, whose name is no path, is its own layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import onnx_ir as ir

from vit_export.graph.io import open_graph

WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})


def layer_of(node: ir.Node) -> str:
    """The layer that a node belongs to."""
    name = node.name or ""
    return name.rpartition("/")[0] or name


def block_of(layer: str, blocks: Sequence[str]) -> str:
    """The encoder block that a layer stands in; empty for what lies outside of them."""
    for block in blocks:
        if layer == block or layer.startswith(f"{block}."):
            return block
    return ""


def weight_of(node: ir.Node) -> ir.Value | None:
    """The constant matrix or kernel of a MatMul, Gemm or Conv; `None` where it has none."""
    if node.op_type not in WEIGHTED or node.domain or len(node.inputs) < 2:
        return None
    weight = node.inputs[1]
    return weight if weight is not None and weight.is_initializer() else None


def weighted_layers(nodes: Iterable[ir.Node]) -> list[str]:
    """Layers that hold weights, in the order of the graph, each once."""
    return list(dict.fromkeys(layer_of(node) for node in nodes if weight_of(node) is not None))


def weight_bytes(path: Path) -> dict[str, int]:
    """Bytes of the weights of every layer of a file that holds some."""
    found: dict[str, int] = {}
    for node in open_graph(path).graph:
        weight = weight_of(node)
        if weight is not None and weight.const_value is not None:
            layer = layer_of(node)
            found[layer] = found.get(layer, 0) + weight.const_value.nbytes
    return found

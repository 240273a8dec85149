"""Layers of a graph, and the weights of their nodes.

A layer is the path of a module, as `names.py` gives it to nodes: the node
`blocks.3.mlp.fc2/MatMul` belongs to the layer `blocks.3.mlp.fc2`. A node of another exporter,
whose name is no path, is a layer by itself.
"""

from pathlib import Path

import onnx_ir as ir

from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.graph.io import open_graph

WEIGHTED_OPS = frozenset({"Conv", "Gemm", "MatMul"})


def layer_of(node: ir.Node) -> str:
    """Return the layer that a node belongs to."""
    name = node.name or ""
    return name.rpartition("/")[0] or name


def weight_of(node: ir.Node) -> ir.Value | None:
    """Return the constant matrix or kernel of a MatMul, Gemm or Conv; `None` without one."""
    if node.op_type not in WEIGHTED_OPS or node.domain or len(node.inputs) < 2:
        return None
    weight = node.inputs[1]
    return weight if weight is not None and weight.is_initializer() else None


def converted_nodes(file: OnnxFile) -> int:
    """Return the number of nodes with an FP16, BF16 or INT8 weight in a file."""
    narrow = {t.name for t in file.initializers if t.dtype in ("float16", "bfloat16", "int8")}
    narrow |= {
        node.outputs[0]
        for node in file.nodes
        if node.op_type == "DequantizeLinear" and node.inputs[0] in narrow
    }
    weighted = WEIGHTED_OPS | {"MatMulInteger"}
    return sum(node.op_type in weighted and node.inputs[1] in narrow for node in file.nodes)


def weight_bytes(path: Path) -> dict[str, int]:
    """Return the bytes of weights by layer, for the layers of a file that hold any."""
    sizes: dict[str, int] = {}
    for node in open_graph(path).graph:
        weight = weight_of(node)
        if weight is not None and weight.const_value is not None:
            layer = layer_of(node)
            sizes[layer] = sizes.get(layer, 0) + weight.const_value.nbytes
    return sizes

"""Choose which nodes of a graph compute in half precision.

Every node that computes or compares floats is `"narrow"` (half precision) or `"wide"` (float32);
nodes that compute shapes and indices are in no plan. The operator and the inputs of a node decide,
in the order of the graph:

- products and the operators between them (`NARROW`) are narrow;
- operators that only move or scale values (`FOLLOWING`) are as wide as their inputs, so that no
  cast separates a product, its bias and the next reshape;
- an Add of a constant vector is a bias, and follows; an Add of two computed tensors is the
  residual stream, and an Add of a larger constant the position embedding: both are wide;
- every other operator is wide, e.g. LayerNormalization and reductions.
"""

from collections.abc import Collection
from typing import Literal, TypeGuard

import onnx_ir as ir

from vit_export.graph.layers import layer_of

Width = Literal["narrow", "wide"]
Plan = dict[ir.Node, Width]

NARROW = frozenset({"Attention", "Conv", "Gelu", "Gemm", "MatMul", "Softmax"})
FOLLOWING = frozenset({
    "Concat", "Div", "Erf", "Expand", "Flatten", "Gather", "Identity", "Mul", "Pad", "Reshape",
    "Slice", "Split", "Squeeze", "Tanh", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
TYPELESS = frozenset({"Cast", "Shape", "Size"})  # take floats of any type, and compute none
# With recipe "all", the residual stream and its norms too. Reductions and Resize stay wide.
RESIDUAL = frozenset({"Add", "LayerNormalization", "Sub"})
RECIPES = {"mixed": NARROW, "all": NARROW | RESIDUAL}


def plan_widths(
    graph: ir.Graph,
    *,
    recipe: str,
    wide_ops: frozenset[str] = frozenset(),
    keep: Collection[str] = (),
    too_large: Collection[str] = (),
) -> Plan:
    """Choose the width of every node of a float32 graph that computes or compares floats.

    Wide in every recipe: the operators `wide_ops`, the layers `keep`, and the nodes that read the
    weights `too_large`, which overflow the narrow type.
    """
    plan: Plan = {}
    for node in graph:
        if not any(is_float(value) for value in node.outputs):
            if node.op_type not in TYPELESS and any(is_float(value) for value in node.inputs):
                plan[node] = "wide"  # a comparison, whose inputs must have one type
            continue
        kept = layer_of(node) in keep and node.op_type not in FOLLOWING
        overflows = any(value is not None and value.name in too_large for value in node.inputs)
        if kept or overflows or node.op_type in wide_ops or node.domain:
            plan[node] = "wide"
        elif node.op_type in RECIPES[recipe]:
            plan[node] = "narrow"
        else:
            plan[node] = _width_of_inputs(node, plan) if _follows(node) else "wide"
    return plan


def is_float(value: ir.Value | None) -> TypeGuard[ir.Value]:
    """Whether a value is float32 in the source graph; one of unknown type counts as float32."""
    return value is not None and value.dtype in (ir.DataType.FLOAT, None) and bool(value.name)


def _follows(node: ir.Node) -> bool:
    if node.op_type != "Add":
        return node.op_type in FOLLOWING
    constants = [v for v in node.inputs if v is not None and v.is_initializer()]
    return len(constants) == 1 and constants[0].shape is not None and len(constants[0].shape) <= 1


def _width_of_inputs(node: ir.Node, plan: Plan) -> Width:
    computed = [v for v in node.inputs if is_float(v) and not v.is_initializer()]
    narrow = [plan.get(p) == "narrow" for v in computed if (p := v.producer()) is not None]
    return "narrow" if narrow and len(narrow) == len(computed) and all(narrow) else "wide"

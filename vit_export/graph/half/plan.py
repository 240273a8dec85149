"""Which nodes of a graph compute in half precision.

Every node that gives or compares floats is `"narrow"` or `"wide"`; the others (shapes, indices)
are in no plan. A decision looks at the operator and at where its inputs come from, in the order
of the graph:

- products and what stands between them (`NARROW`) are narrow;
- what only moves or scales values (`FOLLOWING`) is as its inputs are, so that no cast stands
  between a product, its bias and the next reshape;
- an Add of a constant vector is a bias, and follows; an Add of two computed tensors is the
  residual stream, and an Add of anything larger the position embedding: both are wide;
- everything else is wide: LayerNormalization, reductions, what nobody thought of.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import onnx_ir as ir

from vit_export.graph.layers import layer_of

Width = Literal["narrow", "wide"]
Plan = dict[ir.Node, Width]

NARROW = frozenset({"Attention", "Conv", "Gelu", "Gemm", "MatMul", "Softmax"})
FOLLOWING = frozenset({
    "Concat", "Div", "Erf", "Expand", "Flatten", "Gather", "Identity", "Mul", "Pad", "Reshape",
    "Slice", "Split", "Squeeze", "Tanh", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
TYPELESS = frozenset({"Cast", "Shape", "Size"})  # read floats of any type, and give none
# With recipe "all", the residual stream and its norms too. Reductions and Resize stay wide.
RESIDUAL = frozenset({"Add", "LayerNormalization", "Sub"})
RECIPES = {"mixed": NARROW, "all": NARROW | RESIDUAL}


def plan_types(
    graph: ir.Graph,
    *,
    recipe: frozenset[str],
    wide_ops: frozenset[str] = frozenset(),
    keep: Collection[str] = (),
    too_large: Collection[str] = (),
) -> Plan:
    """Decide for every node that gives floats.

    Args:
        graph: In float32, sorted, with inferred types.
        recipe: Operators that are narrow; a value of `RECIPES`.
        wide_ops: Operators that are wide whatever the recipe.
        keep: Layers that are wide.
        too_large: Weights that do not fit the narrow type; their nodes are wide.
    """
    plan: Plan = {}
    for node in graph:
        if not any(is_float(value) for value in node.outputs):
            if node.op_type not in TYPELESS and any(is_float(value) for value in node.inputs):
                plan[node] = "wide"  # a comparison: what it reads has to be of one type
            continue
        held = layer_of(node) in keep and node.op_type not in FOLLOWING
        weights = {value.name for value in node.inputs if value is not None}
        if held or node.op_type in wide_ops or weights & set(too_large):
            plan[node] = "wide"
        elif node.op_type in recipe and not node.domain:
            plan[node] = "narrow"
        elif _follows(node):
            plan[node] = _width_of_inputs(node, plan)
        else:
            plan[node] = "wide"
    return plan


def is_float(value: ir.Value | None) -> bool:
    """Whether a value is float32 in the graph that is converted; an unknown type may be."""
    return value is not None and value.dtype in (ir.DataType.FLOAT, None) and bool(value.name)


def is_constant(value: ir.Value) -> bool:
    """Whether a value is a weight, not computed and no input of the graph."""
    return value.is_initializer()


def _follows(node: ir.Node) -> bool:
    if node.domain:
        return False
    if node.op_type != "Add":
        return node.op_type in FOLLOWING
    constants = [value for value in node.inputs if value is not None and is_constant(value)]
    return len(constants) == 1 and constants[0].shape is not None and len(constants[0].shape) <= 1


def _width_of_inputs(node: ir.Node, plan: Plan) -> Width:
    computed = [v for v in node.inputs if v is not None and is_float(v) and not is_constant(v)]
    narrow = [plan.get(p) == "narrow" for v in computed if (p := v.producer()) is not None]
    return "narrow" if narrow and len(narrow) == len(computed) and all(narrow) else "wide"

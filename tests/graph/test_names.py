"""Nodes are named after their modules, and nothing reveals where they were exported."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from vit_export.graph.builder import clear_origin
from vit_export.graph.names import name_after_modules

SCOPES = "pkg.torch.onnx.name_scopes"
WITH_SHAPE = {"type": ir.TensorType(ir.DataType.FLOAT), "shape": ir.Shape([2, 2])}


def constant(name: str) -> ir.Value:
    """An initializer."""
    tensor = ir.tensor([[1.0, 2.0], [3.0, 4.0]], name=name)
    return ir.Value(name=name, const_value=tensor, **WITH_SHAPE)


def graph_of(*steps: tuple[str, list[str], str], outputs: int = 1) -> ir.Model:
    """A chain of nodes, each with a constant: (operator, modules it stands in, constant's name)."""
    x = ir.Value(name="x", **WITH_SHAPE)
    value, nodes, constants = x, [], []
    for i, (op_type, scopes, name) in enumerate(steps):
        constants.append(constant(name))
        node = ir.Node("", op_type, [value, constants[-1]], name=f"node_{i}")
        node.metadata_props[SCOPES] = repr([*scopes, "operation"])
        node.metadata_props["pkg.torch.onnx.stack_trace"] = 'File "/home/me/model.py", line 3'
        node.doc_string = "from /home/me"
        node.outputs[0].name = f"val_{i}"
        node.outputs[0].metadata_props["where"] = "/home/me"
        value = node.outputs[0]
        nodes.append(node)
    value.name = "logits"
    graph = ir.Graph([x], [value], nodes=nodes, initializers=constants, opset_imports={"": 20})
    model = ir.Model(graph, ir_version=10)
    model.metadata_props["made"] = "/home/me"
    return model


def named(model: ir.Model) -> tuple[list[str], list[str]]:
    """Names of nodes and initializers after renaming."""
    name_after_modules(model, keep={"x", "logits"})
    return [node.name for node in model.graph], list(model.graph.initializers)


def test_nodes_and_weights_are_named_after_their_module():
    """The innermost one; weights that torch folded get its name."""
    nodes, weights = named(
        graph_of(
            ("MatMul", ["", "module", "module.blocks.0", "module.blocks.0.attn.qkv"], "val_7"),
            ("Add", ["", "module", "module.blocks.0", "module.blocks.0.attn.qkv"],
             "module.blocks.0.attn.qkv.bias"),
        )
    )  # fmt: skip
    assert nodes == ["blocks.0.attn.qkv/MatMul", "blocks.0.attn.qkv/Add"]
    assert set(weights) == {"blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.bias"}


def test_the_same_operator_twice_in_a_module_is_numbered():
    """Names are unique."""
    nodes, _ = named(graph_of(*[("Add", ["", "module.mlp"], f"c{i}") for i in range(3)]))
    assert nodes == ["mlp/Add", "mlp/Add_2", "mlp/Add_3"]


def test_a_node_of_a_rewrite_counts_to_the_module_that_reads_it():
    """The exporter leaves such nodes without metadata."""
    model = graph_of(("Split", [""], "c0"), ("Add", ["", "module", "module.attn"], "c1"))
    del next(iter(model.graph)).metadata_props[SCOPES]
    nodes, _ = named(model)
    assert nodes == ["attn/Split", "attn/Add"]


def test_values_have_the_name_of_their_node_and_outputs_keep_theirs():
    """The profile of a runtime shows both."""
    model = graph_of(("Add", ["", "module.a"], "c0"), ("Add", ["", "module.b"], "c1"))
    named(model)
    assert [node.outputs[0].name for node in model.graph] == ["a/Add", "logits"]


@pytest.mark.parametrize(
    ("scopes", "name"),
    [
        ([""], "Add"),
        (["", "module"], "Add"),
        (["", "module", "module.module_list.0"], "module_list.0/Add"),
        (["", "module", "module.module1"], "module1/Add"),
        (["", "module", "module.module"], "module/Add"),
    ],
)
def test_a_module_name_that_begins_like_the_wrappers_is_not_cut(scopes, name):
    """`module_list` is not `_list`."""
    assert named(graph_of(("Add", scopes, "c")))[0] == [name]


def test_a_weight_whose_new_name_is_taken_keeps_its_old_name():
    """Two products in one module have two weights."""
    model = graph_of(("MatMul", ["", "module.fc"], "val_1"), ("MatMul", ["", "module.fc"], "val_2"))
    _, weights = named(model)
    assert set(weights) == {"fc.weight", "val_2"}
    assert [node.inputs[1].name for node in model.graph] == ["fc.weight", "val_2"]


def test_constants_that_are_no_numbered_weights_keep_their_names():
    """A constant of an Add, and a weight that torch named."""
    _, weights = named(
        graph_of(("Add", ["", "module.fc"], "val_1"), ("MatMul", ["", "module.fc"], "scale"))
    )
    assert set(weights) == {"val_1", "scale"}


def test_a_node_without_a_module_is_named_after_its_operator():
    """A later exporter may write no metadata."""
    model = graph_of(("Add", [], "c"))
    model.graph[0].metadata_props.clear()
    assert named(model)[0] == ["Add"]


def test_metadata_and_documentation_are_removed():
    """From the model, its graphs, nodes and values, and from branches."""
    model = graph_of(("Add", ["", "module.a"], "c"))
    branch = ir.Node("", "Neg", [model.graph.inputs[0]])
    branch.metadata_props["where"] = "/home/me"
    branch.doc_string = "/home/me"
    body = ir.Graph([], [branch.outputs[0]], nodes=[branch], name="then")
    body.outputs[0].name = "negative"
    model.graph.append(ir.Node("", "If", [], [ir.AttrGraph("then_branch", body)]))
    inner = (body, branch.outputs[0])
    for thing in (model.graph, model.graph.inputs[0], model.graph.initializers["c"], *inner):
        thing.metadata_props["where"] = "/home/me"
        thing.doc_string = "/home/me"
    model.doc_string = "/home/me"
    assert b"/home/me" in ir.to_proto(model).SerializeToString()
    clear_origin(model)
    assert b"/home/me" not in ir.to_proto(model).SerializeToString()

"""FP16 and BF16 graphs: strongly typed, as planned, near fp32, and never clamped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.errors import ArtifactError, UsageError
from vit_export.graph.half.convert import (
    layers_to_narrow,
    narrow_nodes,
    residual_tensors,
    to_half,
)
from vit_export.pipeline.export import export
from vit_export.pipeline.settings import ExportSettings

HALF = {TensorProto.FLOAT16, TensorProto.BFLOAT16}


def converted(source: Path, folder: Path, **options: object) -> onnx.ModelProto:
    """Convert, check and infer types."""
    path = folder / "half.onnx"
    to_half(source, path, **options)
    model = onnx.load(path)
    del model.graph.value_info[:]  # what stands there could hide a wrong type
    onnx.checker.check_model(model, full_check=True)
    return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)


def types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type by tensor name."""
    graph = model.graph
    values = (*graph.input, *graph.output, *graph.value_info)
    found = {value.name: value.type.tensor_type.elem_type for value in values}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


def width_of(model: onnx.ModelProto, op: str) -> set[int]:
    """Element types of what nodes of an operator give."""
    known = types(model)
    return {known[node.output[0]] for node in model.graph.node if node.op_type == op}


def run(model: onnx.ModelProto | Path, x: np.ndarray) -> np.ndarray:
    """First output on the CPU."""
    data = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    return session.run(None, {"pixel_values": x})[0].astype(np.float64)


def pixels(batch: int = 3) -> np.ndarray:
    """Standard normal images of the tiny model."""
    return np.random.default_rng(0).standard_normal((batch, 3, 32, 32)).astype(np.float32)


def test_mixed_keeps_norms_residual_and_positions_wide(tiny_export, tmp_path):
    """And everything else narrow, biases and GELU included."""
    model = converted(tiny_export.path, tmp_path)
    for op in ("Conv", "MatMul", "Gemm", "Softmax", "Gelu"):
        assert width_of(model, op) == {TensorProto.FLOAT16}, op
    assert width_of(model, "LayerNormalization") == {TensorProto.FLOAT}
    known = types(model)
    assert {known[name] for name in residual_tensors(tiny_export.path)} == {TensorProto.FLOAT}
    biases = [n for n in model.graph.node if n.op_type == "Add" and "attn.qkv" in n.name]
    assert biases
    assert {known[node.output[0]] for node in biases} == {TensorProto.FLOAT16}


def test_inputs_and_outputs_stay_float32_unless_asked_for(tiny_export, tmp_path):
    """Programs that run the fp32 file run this one."""
    for half_io, expected in ((False, "float32"), (True, "float16")):
        path = tmp_path / "half.onnx"
        to_half(tiny_export.path, path, half_io=half_io)
        file = OnnxFile.read(path)
        assert {spec.dtype for spec in (*file.inputs, *file.outputs)} == {expected}
        names = [spec.name for spec in (*file.inputs, *file.outputs)]
        assert names == ["pixel_values", "logits"]


def test_all_leaves_no_float32_tensor_but_inputs_and_outputs(tiny_export, tmp_path):
    """The residual stream and its norms are narrow as well."""
    model = converted(tiny_export.path, tmp_path, recipe="all")
    wide = {name for name, kind in types(model).items() if kind == TensorProto.FLOAT}
    assert wide == {"pixel_values", "logits"}


@pytest.mark.parametrize("recipe", ["mixed", "all"])
def test_what_is_computed_stays_near_fp32(tiny_export, tmp_path, recipe):
    """Within float16's rounding, at a batch size that was not traced."""
    y = run(tiny_export.path, pixels())
    z = run(converted(tiny_export.path, tmp_path, recipe=recipe), pixels())
    assert 0 < np.abs(z - y).max() < 5e-3 * np.abs(y).max()


def test_weights_take_half_the_bytes(make_model, tmp_path):
    """Of a model wide enough that its norms and positions do not count."""
    made = export(make_model(embed_dim=192, depth=4), tmp_path / "wide.onnx")
    to_half(made.path, tmp_path / "half.onnx")
    narrow, wide = (OnnxFile.read(p).weights_bytes for p in (tmp_path / "half.onnx", made.path))
    assert 0.5 <= narrow / wide <= 0.51


def test_kept_layers_stay_float32_and_are_counted(tiny_export, tmp_path):
    """What the file holds is what the plan says, for any choice of layers."""
    layers = layers_to_narrow(tiny_export.path, precision="fp16", recipe="mixed")
    assert "blocks.1.mlp.fc2" in layers
    assert "blocks.1.attn" in layers  # the products of attention are a layer without weights
    for keep in ([], ["blocks.1.mlp.fc2"], ["blocks.0.attn"], layers):
        path = tmp_path / "half.onnx"
        done = to_half(tiny_export.path, path, keep=keep)
        weighted = [name for name in keep if name != "blocks.0.attn" and "act" not in name]
        weighted = [name for name in weighted if not name.endswith(".attn")]
        assert done.planned == 14  # 3 blocks of 4, the patches and the head
        assert done.narrowed == narrow_nodes(OnnxFile.read(path)) == 14 - len(weighted)
    assert {t.dtype for t in OnnxFile.read(path).initializers} == {"float32", "int64"}


def test_a_weight_beyond_the_largest_value_is_kept_and_reported(make_model, tmp_path):
    """65504 fits, 65520 rounds to infinity; nothing is clamped."""
    model = make_model()
    with_large = model.blocks[1].mlp.fc2.bias.data
    with_large[3], with_large[4] = 7e4, 65504.0
    made = export(model, tmp_path / "m.onnx")
    done = to_half(made.path, tmp_path / "half.onnx")
    (kept,) = done.kept
    assert kept.layer == "blocks.1.mlp.fc2"
    assert kept.reason.startswith("1 of 32 values of blocks.1.mlp.fc2.bias lie beyond 65504")
    bias = next(
        numpy_helper.to_array(tensor)
        for tensor in onnx.load(tmp_path / "half.onnx").graph.initializer
        if tensor.name == "blocks.1.mlp.fc2.bias"
    )
    assert bias.dtype == np.float32
    assert bias[3] == np.float32(7e4)


def test_weights_that_flush_to_zero_are_counted(make_model, tmp_path):
    """Below 2^-25 nothing is left; values that were zero are no loss."""
    model = make_model()
    model.blocks[0].mlp.fc1.weight.data[:2] = 1e-8
    model.blocks[0].mlp.fc1.weight.data[2] = 0.0
    made = export(model, tmp_path / "m.onnx")
    done = to_half(made.path, tmp_path / "half.onnx")
    assert len(done.notes) == 1
    assert done.notes[0].startswith("64 of ")
    assert "64 of them in blocks.0.mlp.fc1.weight" in done.notes[0]
    assert to_half(made.path, tmp_path / "half.onnx", precision="bf16").notes == ()


def test_bf16_leaves_the_patch_convolution_wide(tiny_export, tmp_path):
    """No ONNX before opset 22 knows a bfloat16 Conv."""
    model = converted(tiny_export.path, tmp_path, precision="bf16")
    assert width_of(model, "Conv") == {TensorProto.FLOAT}
    assert width_of(model, "MatMul") == {TensorProto.BFLOAT16}


KINDS = {  # fields of the model, options of the export
    "distilled": ({"distilled": True, "qkv_bias": False}, {"batch": 2}),
    "pre_logits": ({"representation_size": 16, "act_layer": "gelu_tanh"}, {}),
    "average": ({"global_pool": "avg"}, {"opset": 18}),
    "no_head": ({"num_classes": 0}, {"external_data": True}),
    "raw": ({}, {"simplify": False, "outputs": ("logits", "features", "tokens")}),
    "attention_op": ({}, {"attention": "op"}),
    "dynamic_size": ({}, {"dynamic_size": True}),
}


@pytest.mark.parametrize(("fields", "road"), KINDS.values(), ids=KINDS)
def test_every_kind_of_artifact_becomes_strongly_typed(make_model, tmp_path, fields, road):
    """Checked by onnx's own type inference, and near fp32 on the CPU."""
    made = export(make_model(**fields), tmp_path / "m.onnx", settings=ExportSettings(**road))
    x = pixels(2)
    y = run(made.path, x)
    for recipe in ("mixed", "all"):
        model = converted(made.path, tmp_path, recipe=recipe)
        assert np.abs(run(model, x) - y).max() < 1e-2 * np.abs(y).max()
        assert {"blocks.0", "blocks.1", "blocks.2"} <= set(types(model))  # a trace looks for them


def test_a_weight_of_both_precisions_is_stored_twice_and_one_cast_serves_all(tmp_path):
    """A constant read by a product and by something wide; a tensor read by two products."""
    x = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch_size", 4])
    y = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    nodes = [
        helper.make_node("MatMul", ["pixel_values", "w"], ["a"], name="a/MatMul"),
        helper.make_node("MatMul", ["pixel_values", "w"], ["b"], name="b/MatMul"),
        helper.make_node("Sub", ["a", "w"], ["c"], name="c/Sub"),
        helper.make_node("Sub", ["b", "c"], ["logits"], name="d/Sub"),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], [weight])
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "m.onnx")
    model = converted(tmp_path / "m.onnx", tmp_path)
    assert sorted((t.name, t.data_type) for t in model.graph.initializer) == [
        ("w", TensorProto.FLOAT),
        ("w/float16", TensorProto.FLOAT16),
    ]
    casts = [node.input[0] for node in model.graph.node if node.op_type == "Cast"]
    assert sorted(casts) == ["a", "b", "pixel_values"]


def test_a_comparison_reads_one_type(tmp_path):
    """What gives no floats, but reads some, is typed as well."""
    x = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch_size", 4])
    y = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    weights = [
        numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"),
        numpy_helper.from_array(np.float32(0.1), "limit"),
    ]
    nodes = [
        helper.make_node("MatMul", ["pixel_values", "w"], ["a"], name="a/MatMul"),
        helper.make_node("Greater", ["a", "limit"], ["more"], name="Greater"),
        helper.make_node("Where", ["more", "a", "limit"], ["logits"], name="Where"),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "m.onnx")
    model = converted(tmp_path / "m.onnx", tmp_path)
    assert width_of(model, "MatMul") == {TensorProto.FLOAT16}
    found = run(model, np.array([[0.0, 1, 2, -1]], np.float32))
    np.testing.assert_allclose(found, [[0.1, 1, 2, 0.1]], rtol=1e-3)


def test_what_was_converted_already_is_refused(tiny_export, tmp_path):
    """Twice half is no quarter."""
    to_half(tiny_export.path, tmp_path / "half.onnx")
    with pytest.raises(ArtifactError, match="float16 weights, so it was converted already"):
        to_half(tmp_path / "half.onnx", tmp_path / "again.onnx")


def test_control_flow_is_refused(tmp_path):
    """Its branches are graphs of their own, which no plan looks into."""
    branch = helper.make_graph(
        [helper.make_node("Identity", ["pixel_values"], ["r"])], "b", [],
        [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)],
    )  # fmt: skip
    node = helper.make_node("If", ["yes"], ["logits"], then_branch=branch, else_branch=branch)
    x = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch_size", 4])
    y = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    yes = numpy_helper.from_array(np.array(True), "yes")
    graph = helper.make_graph([node], "g", [x], [y], [yes])
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "m.onnx")
    with pytest.raises(ArtifactError, match="control flow"):
        to_half(tmp_path / "m.onnx", tmp_path / "half.onnx")


def test_a_mistyped_precision_or_recipe_gets_the_nearest(tiny_export, tmp_path):
    """As every name does."""
    with pytest.raises(UsageError, match="did you mean 'fp16'"):
        to_half(tiny_export.path, tmp_path / "half.onnx", precision="fp61")
    with pytest.raises(UsageError, match="did you mean 'mixed'"):
        to_half(tiny_export.path, tmp_path / "half.onnx", recipe="mix")


def test_the_same_source_gives_the_same_bytes(tiny_export, tmp_path):
    """No clock, no order of a set."""
    files = []
    for name in ("a", "b"):
        to_half(tiny_export.path, tmp_path / f"{name}.onnx")
        data = (tmp_path / f"{name}.onnx").read_bytes().replace(name.encode() + b".onnx", b"")
        files.append((data, (tmp_path / f"{name}.onnx.data").read_bytes()))
    assert files[0] == files[1]

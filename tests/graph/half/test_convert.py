"""FP16 and BF16 graphs: strongly typed, as planned, near fp32, and never clamped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphs import constants
from onnx import TensorProto, helper

from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.errors import ArtifactError
from vit_export.graph.half.convert import (
    layers_to_narrow,
    residual_tensors,
    to_half,
)
from vit_export.graph.layers import converted_nodes


def converted(source: Path, folder: Path, **options: object) -> onnx.ModelProto:
    """Convert, check and infer types."""
    path = folder / "half.onnx"
    to_half(source, path, **options)
    model = onnx.load(path)
    del model.graph.value_info[:]  # what is there could hide a wrong type
    onnx.checker.check_model(model, full_check=True)
    return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)


def types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type by tensor name."""
    graph = model.graph
    values = (*graph.input, *graph.output, *graph.value_info)
    known = {value.name: value.type.tensor_type.elem_type for value in values}
    return known | {tensor.name: tensor.data_type for tensor in graph.initializer}


def types_of(model: onnx.ModelProto, op: str) -> set[int]:
    """Element types of the outputs of an operator's nodes."""
    known = types(model)
    return {known[node.output[0]] for node in model.graph.node if node.op_type == op}


def run(model: onnx.ModelProto | Path, x: np.ndarray) -> np.ndarray:
    """First output on the CPU."""
    data = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0].astype(np.float64)


def pixels(batch: int = 3) -> np.ndarray:
    """Standard normal images of the tiny model."""
    return np.random.default_rng(0).standard_normal((batch, 3, 32, 32)).astype(np.float32)


def test_mixed_keeps_norms_residual_and_positions_in_float32(tiny_export, tmp_path):
    """And converts all other operators, biases and GELU included; weights take half the bytes."""
    model = converted(tiny_export.path, tmp_path)
    for op in ("Conv", "MatMul", "Gemm", "Softmax", "Gelu"):
        assert types_of(model, op) == {TensorProto.FLOAT16}, op
    assert types_of(model, "LayerNormalization") == {TensorProto.FLOAT}
    known = types(model)
    assert {known[name] for name in residual_tensors(tiny_export.path)} == {TensorProto.FLOAT}
    biases = [n for n in model.graph.node if n.op_type == "Add" and "attn.qkv" in n.name]
    assert biases
    assert {known[node.output[0]] for node in biases} == {TensorProto.FLOAT16}
    wide = constants(tiny_export.path)
    narrow = {name.removesuffix("/float16"): value
              for name, value in constants(tmp_path / "half.onnx").items()}  # fmt: skip
    assert set(narrow) == set(wide)
    for name, value in wide.items():
        if ".weight" in name and "norm" not in name:
            assert narrow[name].nbytes == value.nbytes / 2


def test_inputs_and_outputs_stay_float32_unless_asked_for(tiny_export, tmp_path):
    """Programs that run the fp32 file run this one."""
    for half_io, expected in ((False, "float32"), (True, "float16")):
        path = tmp_path / "half.onnx"
        to_half(tiny_export.path, path, half_io=half_io)
        file = OnnxFile.read(path)
        assert {spec.dtype for spec in (*file.inputs, *file.outputs)} == {expected}
        names = [spec.name for spec in (*file.inputs, *file.outputs)]
        assert names == ["pixel_values", "logits"]


def test_all_leaves_only_inputs_and_outputs_in_float32(tiny_export, tmp_path):
    """The residual stream and its norms are converted as well."""
    model = converted(tiny_export.path, tmp_path, recipe="all")
    wide = {name for name, kind in types(model).items() if kind == TensorProto.FLOAT}
    assert wide == {"pixel_values", "logits"}


@pytest.mark.parametrize("recipe", ["mixed", "all"])
def test_outputs_stay_near_fp32(tiny_export, tmp_path, recipe):
    """Within float16's rounding, at a batch size that was not traced."""
    y = run(tiny_export.path, pixels())
    z = run(converted(tiny_export.path, tmp_path, recipe=recipe), pixels())
    assert 0 < np.abs(z - y).max() < 5e-3 * np.abs(y).max()


def test_kept_layers_stay_float32_and_are_counted(tiny_export, tmp_path):
    """The file has as many converted nodes as planned, for any choice of layers."""
    layers = layers_to_narrow(tiny_export.path, precision="fp16", recipe="mixed")
    assert "blocks.1.mlp.fc2" in layers
    assert "blocks.1.attn" in layers  # the products of attention are a layer without weights
    weighted = [name for name in layers if "act" not in name and not name.endswith(".attn")]
    for keep in ([], ["blocks.1.mlp.fc2"], ["blocks.0.attn"], layers):
        path = tmp_path / "half.onnx"
        done = to_half(tiny_export.path, path, keep=keep)
        assert done.planned == 15  # 4 in each block, q apart in the last, the patches and the head
        kept = sum(name in weighted for name in keep)
        assert done.narrowed == converted_nodes(OnnxFile.read(path)) == 15 - kept
    assert {t.dtype for t in OnnxFile.read(path).initializers} == {"float32", "int64"}


def test_a_weight_beyond_the_largest_value_stays_fp32_and_is_reported(edit_weights, tmp_path):
    """65504 fits, 65520 rounds to infinity; nothing is clamped."""

    def change(bias: np.ndarray) -> None:
        bias[3], bias[4] = 7e4, 65504.0

    done = to_half(edit_weights("blocks.1.mlp.fc2.bias", change), tmp_path / "half.onnx")
    (kept,) = done.kept
    assert kept.layer == "blocks.1.mlp.fc2"
    assert kept.reason.startswith("1 of 32 values of blocks.1.mlp.fc2.bias exceed 65504")
    bias = constants(tmp_path / "half.onnx")["blocks.1.mlp.fc2.bias"]
    assert bias.dtype == np.float32
    assert bias[3] == np.float32(7e4)


def test_weights_that_become_zero_are_counted(edit_weights, tmp_path):
    """Below 2^-25 nothing is left; values that were zero are no loss."""

    def change(weight: np.ndarray) -> None:
        weight[:, :2] = 1e-8
        weight[:, 2] = 0.0

    source = edit_weights("blocks.0.mlp.fc1.weight", change)
    done = to_half(source, tmp_path / "half.onnx")
    assert len(done.notes) == 1
    assert done.notes[0].startswith("64 of ")
    assert "64 of them in blocks.0.mlp.fc1.weight" in done.notes[0]
    assert to_half(source, tmp_path / "half.onnx", precision="bf16").notes == ()


def test_bf16_leaves_the_patch_convolution_in_float32(tiny_export, tmp_path):
    """ONNX has no bfloat16 Conv before opset 22."""
    model = converted(tiny_export.path, tmp_path, precision="bf16")
    assert types_of(model, "Conv") == {TensorProto.FLOAT}
    assert types_of(model, "MatMul") == {TensorProto.BFLOAT16}


def test_a_weight_of_both_precisions_is_stored_twice_and_readers_share_a_cast(
    write_graph, tmp_path
):
    """A product and a float32 operator read the constant; two products read x."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="a/MatMul"),
        helper.make_node("MatMul", ["x", "w"], ["b"], name="b/MatMul"),
        helper.make_node("Sub", ["a", "w"], ["c"], name="c/Sub"),
        helper.make_node("Sub", ["b", "c"], ["y"], name="d/Sub"),
    ]
    source = write_graph(nodes, {"w": np.eye(4, dtype=np.float32)}, ["batch_size", 4], None)
    model = converted(source, tmp_path)
    assert sorted((t.name, t.data_type) for t in model.graph.initializer) == [
        ("w", TensorProto.FLOAT),
        ("w/float16", TensorProto.FLOAT16),
    ]
    casts = [node.input[0] for node in model.graph.node if node.op_type == "Cast"]
    assert sorted(casts) == ["a", "b", "x"]


def test_the_inputs_of_a_comparison_have_one_type(write_graph, tmp_path):
    """Its output is no float, but its inputs are."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="a/MatMul"),
        helper.make_node("Greater", ["a", "limit"], ["more"], name="Greater"),
        helper.make_node("Where", ["more", "a", "limit"], ["y"], name="Where"),
    ]
    tensors = {"w": np.eye(4, dtype=np.float32), "limit": np.array(0.1, np.float32)}
    model = converted(write_graph(nodes, tensors, ["batch_size", 4], None), tmp_path)
    assert types_of(model, "MatMul") == {TensorProto.FLOAT16}
    y = run(model, np.array([[0.0, 1, 2, -1]], np.float32))
    np.testing.assert_allclose(y, [[0.1, 1, 2, 0.1]], rtol=1e-3)


def test_a_product_of_integers_stays_as_it_is(write_graph, tmp_path):
    """It is a MatMul with a constant matrix, and has no floats to convert."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="a/MatMul"),
        helper.make_node("Cast", ["a"], ["i"], to=TensorProto.INT64),
        helper.make_node("MatMul", ["i", "v"], ["j"], name="j/MatMul"),
        helper.make_node("Cast", ["j"], ["y"], to=TensorProto.FLOAT),
    ]
    tensors = {"w": np.eye(4, dtype=np.float32), "v": np.eye(4, dtype=np.int64)}
    source = write_graph(nodes, tensors, ["batch_size", 4], None)
    done = to_half(source, tmp_path / "half.onnx")
    assert (done.planned, done.narrowed) == (1, 1)


def test_a_converted_artifact_is_not_converted_again(tiny_export, tmp_path):
    """The fp32 artifact is needed."""
    to_half(tiny_export.path, tmp_path / "half.onnx")
    with pytest.raises(ArtifactError, match="float16 weights, so it was converted already"):
        to_half(tmp_path / "half.onnx", tmp_path / "again.onnx")


def test_control_flow_is_refused(write_graph, tmp_path):
    """Its branches are graphs of their own, which are not converted."""
    branch = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["r"])], "b", [],
        [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)],
    )  # fmt: skip
    node = helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)
    source = write_graph([node], {"yes": np.array(True)}, ["batch_size", 4], None)
    with pytest.raises(ArtifactError, match="control flow"):
        to_half(source, tmp_path / "half.onnx")

"""Dynamic INT8: integers are exact on every machine, and every planned node is converted."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import constants
from onnx import helper

from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.errors import ArtifactError
from vit_export.gate.distance import cosine
from vit_export.graph.int8.dynamic import to_int8_dynamic
from vit_export.graph.layers import converted_nodes

LAYERS = [
    *(f"blocks.{i}.attn.{layer}" for i in range(2) for layer in ("qkv", "proj")),
    *(f"blocks.2.attn.{layer}" for layer in ("q", "kv", "proj")),  # only the class token is read
    *(f"blocks.{i}.mlp.{layer}" for i in range(3) for layer in ("fc1", "fc2")),
]
X = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)


def quantised(x: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """Output of DynamicQuantizeLinear without the zero point: integers, and their scale."""
    low, high = min(x.min(), np.float32(0)), max(x.max(), np.float32(0))
    scale = np.float32((high - low) / np.float32(255))
    zero = np.clip(np.rint(-low / scale), 0, 255)
    return (np.clip(np.rint(x / scale) + zero, 0, 255) - zero).astype(np.int64), scale


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("k", [64, 61])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("gemm", [False, True])
def test_the_integers_are_exact_where_plain_scaling_saturates(
    write_product, run_ort, tmp_path, rows, k, sign, gemm
):
    """Large weights of one sign and large activations: pairs overflow 16 bits unless limited."""
    rng = np.random.default_rng(0)
    weight = (sign * rng.uniform(0.9, 1, (k, 32))).astype(np.float32)
    bias = np.zeros(32, np.float32) if gemm else None
    source = write_product(weight, bias=bias, transposed=gemm)
    to_int8_dynamic(source, tmp_path / "int8.onnx")
    x = rng.uniform(0.9, 1, (rows, k)).astype(np.float32)
    values = constants(tmp_path / "int8.onnx")
    integers, scale = quantised(x)
    wanted = integers @ values["fc.weight_int8"].astype(np.int64)
    (y,) = run_ort(tmp_path / "int8.onnx", x)
    assert np.array_equal(np.rint(y / (scale * values["fc.weight_scale"])), wanted)


def test_the_file_has_as_many_int8_products_as_planned(tiny_export, tmp_path):
    """Products of attention, the convolution and the norms stay float32."""
    conversion = to_int8_dynamic(tiny_export.path, tmp_path / "int8.onnx")
    file, before = OnnxFile.read(tmp_path / "int8.onnx"), OnnxFile.read(tiny_export.path)
    assert (conversion.recipe, conversion.planned, conversion.narrowed) == ("dynamic", 14, 14)
    assert converted_nodes(file) == 14
    assert converted_nodes(before) == 0
    assert file.op_counts["MatMul"] == before.op_counts["MatMul"] - 13 == 6
    for op in ("Conv", "LayerNormalization", "Softmax", "Gelu"):
        assert file.op_counts[op] == before.op_counts[op]
    assert file.ir_version <= 10
    assert [s.name for s in file.outputs] == [s.name for s in before.outputs]
    onnx.checker.check_model(tmp_path / "int8.onnx", full_check=True)


def test_onnxruntime_fuses_every_converted_product(tiny_export, fused_ops, tmp_path):
    """Five nodes in the file become one kernel."""
    to_int8_dynamic(tiny_export.path, tmp_path / "int8.onnx")
    ops = fused_ops(tmp_path / "int8.onnx")
    assert ops["DynamicQuantizeMatMul"] == 14
    assert not {"MatMulInteger", "DynamicQuantizeLinear", "Cast"} & set(ops)


def test_outputs_stay_near_those_of_float32(tiny_export, run_ort, tmp_path):
    """By cosine."""
    to_int8_dynamic(tiny_export.path, tmp_path / "int8.onnx")
    for found, wanted in zip(run_ort(tmp_path / "int8.onnx", X),
                             run_ort(tiny_export.path, X), strict=True):  # fmt: skip
        assert cosine(found.astype(np.float64), wanted.astype(np.float64)) >= 0.999
        assert not np.array_equal(found, wanted)


def test_layers_that_are_kept_stay_float32(tiny_export, tmp_path):
    """Their weights to the bit; they still count as planned."""
    kept = ["blocks.1.mlp.fc2", "head"]
    conversion = to_int8_dynamic(tiny_export.path, tmp_path / "int8.onnx", keep=kept)
    assert (conversion.planned, conversion.narrowed) == (14, 12)
    assert converted_nodes(OnnxFile.read(tmp_path / "int8.onnx")) == 12
    before, after = constants(tiny_export.path), constants(tmp_path / "int8.onnx")
    for layer in (*LAYERS, "head"):
        assert (f"{layer}.weight" in after) == (layer in kept)
        assert (f"{layer}.weight_int8" in after) == (layer not in kept)
    for layer in kept:
        assert np.array_equal(before[f"{layer}.weight"], after[f"{layer}.weight"])


def test_keeping_every_layer_changes_no_output(tiny_export, run_ort, tmp_path):
    """The search starts from there."""
    to_int8_dynamic(tiny_export.path, tmp_path / "int8.onnx", keep=[*LAYERS, "head"])
    for found, wanted in zip(run_ort(tmp_path / "int8.onnx", X),
                             run_ort(tiny_export.path, X), strict=True):  # fmt: skip
        assert np.array_equal(found, wanted)


def test_nodes_are_named_after_their_layer_and_tensors_keep_their_names(tiny_export, tmp_path):
    """So that layers can be kept and blocks traced."""
    to_int8_dynamic(tiny_export.path, tmp_path / "int8.onnx")
    nodes = onnx.load(tmp_path / "int8.onnx").graph.node
    names = [node.name for node in nodes]
    assert {f"{layer}/MatMulInteger" for layer in (*LAYERS, "head")} <= set(names)
    assert len(set(names)) == len(names)
    values = OnnxFile.read(tmp_path / "int8.onnx").values
    assert OnnxFile.read(tiny_export.path).values <= values


def test_a_wide_model_takes_a_quarter_of_the_bytes(write_product, tmp_path):
    """Plus the scales and the graph."""
    rng = np.random.default_rng(0)
    source = write_product(rng.standard_normal((768, 1000)).astype(np.float32))
    to_int8_dynamic(source, tmp_path / "int8.onnx")
    size = sum(file.stat().st_size for file in tmp_path.glob("int8.onnx*"))
    assert size < source.stat().st_size / 4 * 1.02


def test_a_tensor_is_quantised_once_and_a_shared_weight_stored_once(
    write_graph, run_ort, fused_ops, tmp_path
):
    """Two layers read x, all share a matrix, one of them the other way round."""
    square = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="a/MatMul"),
        helper.make_node("MatMul", ["a", "w"], ["b"], name="b/MatMul"),
        helper.make_node("Gemm", ["x", "w"], ["c"], name="c/Gemm", transB=1),
        helper.make_node("Sum", ["a", "b", "c"], ["y"], name="Sum"),
    ]
    source = write_graph(nodes, {"w": square}, ["n", 8], ["n", 8])
    to_int8_dynamic(source, tmp_path / "int8.onnx")
    file = OnnxFile.read(tmp_path / "int8.onnx")
    assert (file.op_counts["DynamicQuantizeLinear"], converted_nodes(file)) == (2, 3)
    assert sorted(t.name for t in file.initializers if t.dtype == "int8") == [
        "w_int8", "w_int8_2"]  # fmt: skip
    ops = fused_ops(tmp_path / "int8.onnx")
    assert (ops["MatMulIntegerToFloat"], ops["DynamicQuantizeMatMul"]) == (2, 1)
    x = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)
    (y,) = run_ort(tmp_path / "int8.onnx", x)
    np.testing.assert_allclose(y, x @ (square + square @ square + square.T), atol=0.5)


def test_a_weight_with_a_float32_reader_stays_beside_its_int8(write_graph, tmp_path):
    """Here a layer that is kept."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="a/MatMul"),
        helper.make_node("MatMul", ["a", "w"], ["y"], name="b/MatMul"),
    ]
    source = write_graph(nodes, {"w": np.eye(8, dtype=np.float32)}, ["n", 8], ["n", 8])
    to_int8_dynamic(source, tmp_path / "int8.onnx", keep=["b"])
    assert {"w", "w_int8", "w_scale"} == set(constants(tmp_path / "int8.onnx"))


def test_a_converted_artifact_is_not_converted_again(tiny_export, tmp_path):
    """The fp32 artifact is needed."""
    to_int8_dynamic(tiny_export.path, tmp_path / "int8.onnx")
    with pytest.raises(ArtifactError, match=r"int8[\s\S]*convert the fp32 artifact"):
        to_int8_dynamic(tmp_path / "int8.onnx", tmp_path / "again.onnx")


def test_a_graph_without_products_is_refused(write_graph, tmp_path):
    """It would be INT8 in name only."""
    source = write_graph([helper.make_node("Relu", ["x"], ["y"])], {}, ["n", 2], ["n", 2])
    with pytest.raises(ArtifactError, match="nothing in it can be INT8"):
        to_int8_dynamic(source, tmp_path / "int8.onnx")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_refused(write_product, tmp_path, value):
    """The error names it."""
    source = write_product(np.array([[1, value], [1, 1]], np.float32))
    with pytest.raises(ArtifactError, match=r"'fc\.weight'.*not finite"):
        to_int8_dynamic(source, tmp_path / "int8.onnx")

"""Static INT8: fixed symmetric ranges and exact integers, in the form that TensorRT reads."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import constants

from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.gate.distance import cosine
from vit_export.graph.int8.select import planned_tensors
from vit_export.graph.int8.static import to_int8_static
from vit_export.graph.layers import converted_nodes
from vit_export.runtime.onnxruntime.runner import OrtRunner

X = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def thresholds(tiny_export) -> dict[str, float]:
    """The largest magnitudes on X."""
    names = planned_tensors(tiny_export.path)
    found = OrtRunner(tiny_export.path, provider="cpu").expose(names).run({"pixel_values": X})
    return {name: float(np.abs(found[name]).max()) for name in names}


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("k", [64, 61])
@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_the_integers_are_exact_where_plain_scaling_saturates(
    write_product, run_ort, fused_ops, tmp_path, rows, k, signs
):
    """Signed activations use the unsigned kernel, with their sign bit flipped."""
    rng = np.random.default_rng(0)
    source = write_product((signs[0] * rng.uniform(0.9, 1, (k, 32))).astype(np.float32))
    to_int8_static(source, tmp_path / "int8.onnx", thresholds={"x": 1.0})
    assert fused_ops(tmp_path / "int8.onnx")["MatMulIntegerToFloat"] == 1
    x = (signs[1] * rng.uniform(0.9, 1.1, (rows, k))).astype(np.float32)
    values = constants(tmp_path / "int8.onnx")
    integers = np.clip(np.rint(x / values["x_scale"]), -128, 127).astype(np.int64)
    wanted = integers @ values["fc.weight_int8"].astype(np.int64)
    (y,) = run_ort(tmp_path / "int8.onnx", x)
    assert np.array_equal(np.rint(y / (values["x_scale"] * values["fc.weight_scale"])), wanted)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_gemm_is_quantised_with_its_bias_in_float32(write_product, run_ort, tmp_path, transposed):
    """With weights stored either way; scales are per output channel."""
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((6, 4)), rng.standard_normal(4)
    weight *= 10.0 ** np.arange(4)
    source = write_product(
        weight.astype(np.float32), bias=bias.astype(np.float32), transposed=transposed
    )
    to_int8_static(source, tmp_path / "int8.onnx", thresholds={"x": 3.0})
    x = rng.uniform(-3, 3, (5, 6)).astype(np.float32)
    (y,) = run_ort(tmp_path / "int8.onnx", x)
    assert (np.abs(y - (x @ weight + bias)) < 0.03 * np.abs(weight).sum(axis=0)).all()


def test_the_file_has_as_many_int8_products_as_planned(tiny_export, thresholds, tmp_path):
    """Activations are INT8 with zero point 0, weights INT8 per channel."""
    path = tmp_path / "int8.onnx"
    conversion = to_int8_static(tiny_export.path, path, thresholds=thresholds)
    file = OnnxFile.read(path)
    assert (conversion.recipe, conversion.planned, conversion.narrowed) == ("static", 14, 14)
    assert converted_nodes(file) == 14
    assert (file.op_counts["QuantizeLinear"], file.op_counts["DequantizeLinear"]) == (14, 28)
    values = constants(path)
    for node in onnx.load(path).graph.node:
        if node.op_type == "QuantizeLinear":
            scale, zero = (values[name] for name in node.input[1:])
            assert (scale.shape, zero.dtype, int(zero)) == ((), np.int8, 0)
            assert scale == np.float32(thresholds[node.input[0]] / 127)
        if node.op_type == "DequantizeLinear" and node.input[0] in values:
            axis = next(a.i for a in node.attribute if a.name == "axis")
            weight, scale = (values[name] for name in node.input)
            assert weight.dtype == np.int8
            assert scale.shape == (weight.shape[axis],)
    onnx.checker.check_model(path, full_check=True)


def test_onnxruntime_computes_the_products_in_integers(
    tiny_export, thresholds, fused_ops, tmp_path
):
    """All but the head, which is a Gemm."""
    path = tmp_path / "int8.onnx"
    to_int8_static(tiny_export.path, path, thresholds=thresholds)
    ops = fused_ops(path)
    assert (ops["MatMulIntegerToFloat"], ops["Gemm"]) == (13, 1)


def test_outputs_stay_near_those_of_float32(tiny_export, thresholds, run_ort, tmp_path):
    """By cosine."""
    path = tmp_path / "int8.onnx"
    to_int8_static(tiny_export.path, path, thresholds=thresholds)
    for found, wanted in zip(run_ort(path, X), run_ort(tiny_export.path, X), strict=True):
        assert cosine(found.astype(np.float64), wanted.astype(np.float64)) >= 0.999
        assert not np.array_equal(found, wanted)


def test_rows_do_not_depend_on_their_neighbours(tiny_export, thresholds, run_ort, tmp_path):
    """Ranges are fixed."""
    path = tmp_path / "int8.onnx"
    to_int8_static(tiny_export.path, path, thresholds=thresholds)
    together = run_ort(path, X)[0]
    alone = np.concatenate([run_ort(path, X[i : i + 1])[0] for i in range(len(X))])
    np.testing.assert_allclose(together, alone, atol=0.02 * np.abs(together).max())


def test_kept_layers_need_no_range(tiny_export, thresholds, tmp_path):
    """They stay float32."""
    path = tmp_path / "int8.onnx"
    known = {name: value for name, value in thresholds.items() if name != "features"}
    conversion = to_int8_static(tiny_export.path, path, thresholds=known, keep=["head"])
    assert (conversion.planned, conversion.narrowed) == (14, 13)
    assert converted_nodes(OnnxFile.read(path)) == 13
    assert "head.weight" in constants(path)


def test_a_tensor_of_zeros_has_a_scale(write_product, run_ort, tmp_path):
    """Division by zero would give NaN."""
    source = write_product(np.eye(4, dtype=np.float32))
    to_int8_static(source, tmp_path / "int8.onnx", thresholds={"x": 0.0})
    assert not run_ort(tmp_path / "int8.onnx", np.zeros((2, 4), np.float32))[0].any()

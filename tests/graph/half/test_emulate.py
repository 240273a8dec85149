"""The emulation computes what a GPU computes, where a CPU's float16 hides overflows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.graph.half.convert import to_half
from vit_export.graph.half.emulate import to_rounded


def product_then_scale(kind: int, factor: float) -> onnx.ModelProto:
    """`x @ w` in a half type, scaled in it, and cast back to float32."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 4])
    weights = [
        helper.make_tensor("w", kind, [4, 4], np.full(16, 200.0)),
        helper.make_tensor("s", kind, [], [factor]),
    ]
    nodes = [
        helper.make_node("Cast", ["x"], ["x16"], to=kind),
        helper.make_node("MatMul", ["x16", "w"], ["product"]),
        helper.make_node("Mul", ["product", "s"], ["scaled"]),
        helper.make_node("Cast", ["scaled"], ["y"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(path: Path, x: np.ndarray) -> np.ndarray:
    """First output on the CPU."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def test_an_overflow_between_two_nodes_is_detected(tmp_path):
    """4 * 100 * 200 is beyond float16, which ONNX Runtime's CPU does not notice."""
    x = np.full((2, 4), 100, np.float32)
    onnx.save(product_then_scale(TensorProto.FLOAT16, 0.1), tmp_path / "half.onnx")
    to_rounded(tmp_path / "half.onnx", tmp_path / "rounded.onnx")
    assert np.isfinite(run(tmp_path / "half.onnx", x)).all()  # which is why the emulation exists
    assert np.isinf(run(tmp_path / "rounded.onnx", x)).all()


def test_every_operation_is_rounded_once(tmp_path):
    """As numpy computes it in float16 with sums in float32."""
    kind, dtype = TensorProto.FLOAT16, np.float16
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    onnx.save(product_then_scale(kind, 0.7), tmp_path / "half.onnx")
    to_rounded(tmp_path / "half.onnx", tmp_path / "rounded.onnx")
    narrow = x.astype(dtype).astype(np.float32)
    product = (narrow @ np.full((4, 4), 200, np.float32)).astype(dtype)
    expected = (product.astype(np.float32) * np.float32(dtype(0.7))).astype(dtype)
    np.testing.assert_array_equal(run(tmp_path / "rounded.onnx", x), expected.astype(np.float32))


def test_a_half_precision_input_is_rounded(tiny_export, tmp_path):
    """The artifact gets no more than float16."""
    to_half(tiny_export.path, tmp_path / "half.onnx", half_io=True)
    to_rounded(tmp_path / "half.onnx", tmp_path / "rounded.onnx")
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    narrow = x.astype(np.float16).astype(np.float32)
    assert not np.array_equal(x, narrow)
    path = tmp_path / "rounded.onnx"
    np.testing.assert_array_equal(run(path, x), run(path, narrow))


def test_bfloat16_is_emulated_without_kernels(tmp_path):
    """8 bits of mantissa: 256 + 1 becomes 256."""
    model = product_then_scale(TensorProto.BFLOAT16, 1.0)
    eye = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    model.graph.initializer[0].CopyFrom(
        helper.make_tensor("w", TensorProto.BFLOAT16, [4, 4], numpy_helper.to_array(eye).ravel())
    )
    onnx.save(model, tmp_path / "half.onnx")
    to_rounded(tmp_path / "half.onnx", tmp_path / "rounded.onnx")
    x = np.array([[257, 1.00390625, 3, 1e38]], np.float32)
    np.testing.assert_allclose(run(tmp_path / "rounded.onnx", x), [[256, 1, 3, 1e38]], rtol=2**-8)
    assert run(tmp_path / "rounded.onnx", x)[0, :3].tolist() == [256, 1, 3]


@pytest.mark.parametrize(
    ("precision", "recipe", "half_io"),
    [("fp16", "mixed", False), ("fp16", "all", True), ("bf16", "all", False)],
)
def test_the_emulation_has_the_tensors_of_the_artifact_in_float32(
    tiny_export, tmp_path, precision, recipe, half_io
):
    """So that blocks can be traced; it has no certificate."""
    to_half(
        tiny_export.path, tmp_path / "half.onnx", precision=precision, recipe=recipe,
        half_io=half_io,
    )  # fmt: skip
    to_rounded(tmp_path / "half.onnx", tmp_path / "rounded.onnx")
    file = OnnxFile.read(tmp_path / "rounded.onnx")
    assert {t.dtype for t in file.initializers} == {"float32", "int64"}
    assert {"blocks.0", "blocks.1", "blocks.2", "features", "logits"} <= file.values
    assert {spec.dtype for spec in (*file.inputs, *file.outputs)} == {"float32"}
    assert file.manifest is None
    halves = OnnxFile.read(tmp_path / "half.onnx").values
    assert {name for name in halves if "/" not in name} <= file.values
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    y, z = run(tiny_export.path, x), run(tmp_path / "rounded.onnx", x)
    assert np.abs(z - y).max() < (5e-3 if precision == "fp16" else 4e-2) * np.abs(y).max()

"""Small graphs of products, and what onnxruntime makes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

CPU = ["CPUExecutionProvider"]
Write = Callable[..., Path]


@pytest.fixture
def write_graph(tmp_path: Path) -> Write:
    """Writes a float32 graph from `x` to `y`, of nodes, constants and the two shapes."""

    def write(
        nodes: list[onnx.NodeProto], tensors: dict[str, np.ndarray], *shapes: list[int | str]
    ) -> Path:
        x, y = (
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in zip("xy", shapes, strict=True)
        )
        constants = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
        graph = helper.make_graph(nodes, "g", [x], [y], constants)
        opsets = [helper.make_opsetid("", 20)]
        path = tmp_path / "fp32.onnx"
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
        return path

    return write


@pytest.fixture
def write_product(write_graph: Write) -> Write:
    """Writes `y = x @ weight`, a MatMul; or a Gemm, where there is a bias."""

    def write(
        weight: np.ndarray, *, bias: np.ndarray | None = None, transposed: bool = False
    ) -> Path:
        k, n = weight.shape
        tensors = {"fc.weight": weight.T.copy() if transposed else weight}
        node = helper.make_node("MatMul", ["x", "fc.weight"], ["y"], name="fc/MatMul")
        if bias is not None:
            tensors["fc.bias"] = bias
            inputs = ["x", "fc.weight", "fc.bias"]
            node = helper.make_node("Gemm", inputs, ["y"], name="fc/Gemm", transB=int(transposed))
        return write_graph([node], tensors, ["n", k], ["n", n])

    return write


@pytest.fixture
def run_ort() -> Callable[..., list[np.ndarray]]:
    """Runs a file of one input: every output."""

    def run(path: Path, x: np.ndarray) -> list[np.ndarray]:
        session = ort.InferenceSession(path, providers=CPU)
        return session.run(None, {session.get_inputs()[0].name: x})

    return run


@pytest.fixture
def fused_ops(tmp_path: Path) -> Callable[[Path], Counter[str]]:
    """Counts the operators of the graph that onnxruntime really runs."""

    def count(path: Path) -> Counter[str]:
        options = ort.SessionOptions()
        options.log_severity_level = 3  # it warns that such a file is for this machine only
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        ort.InferenceSession(path, options, providers=CPU)
        nodes = onnx.load(tmp_path / "optimised.onnx", load_external_data=False).graph.node
        return Counter(node.op_type for node in nodes)

    return count

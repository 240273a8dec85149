"""Small graphs of products, the tiny graph with edited weights, and what onnxruntime runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from vit_export.artifact.manifest import TensorSpec
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.graph.export import export_module
from vit_export.model.vit import VisionTransformer
from vit_export.pipeline.export import ExportResult
from vit_export.reference.outputs import vit_outputs

CPU = ["CPUExecutionProvider"]
Write = Callable[..., Path]


@pytest.fixture(scope="session")
def raw_export(
    make_model: Callable[..., VisionTransformer], tmp_path_factory: pytest.TempPathFactory
) -> OnnxFile:
    """The tiny model with tokens, as torch exports it; tests must not change the files."""
    path = tmp_path_factory.mktemp("raw") / "vit.onnx"
    spec = TensorSpec("pixel_values", "float32", ("batch_size", 3, 32, 32))
    return export_module(vit_outputs(make_model(), ("logits", "tokens")), path, [spec])


@pytest.fixture
def write_graph(tmp_path: Path) -> Write:
    """Writes a float32 graph from `x` to `y`, of nodes, constants and the two shapes."""

    def write(
        nodes: Sequence[onnx.NodeProto],
        tensors: dict[str, np.ndarray],
        x: Sequence[int | str],
        y: Sequence[int | str] | None,
    ) -> Path:
        values = (
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in (("x", x), ("y", y))
        )
        constants = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
        graph = helper.make_graph(nodes, "g", *([value] for value in values), constants)
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
def edit_weights(tiny_export: ExportResult, tmp_path: Path) -> Callable[..., Path]:
    """Writes the tiny graph with a weight (or bias) edited in place by a function."""

    def edit(name: str, change: Callable[[np.ndarray], None]) -> Path:
        model = onnx.load(tiny_export.path)
        tensor = next(t for t in model.graph.initializer if t.name == name)
        values = numpy_helper.to_array(tensor).copy()
        change(values)
        tensor.CopyFrom(numpy_helper.from_array(values, name))
        onnx.save(model, tmp_path / "edited.onnx")
        return tmp_path / "edited.onnx"

    return edit


@pytest.fixture
def run_ort() -> Callable[..., list[np.ndarray]]:
    """Runs a file of one input and returns every output."""

    def run(path: Path, x: np.ndarray) -> list[np.ndarray]:
        session = ort.InferenceSession(path, providers=CPU)
        return session.run(None, {session.get_inputs()[0].name: x})

    return run


@pytest.fixture
def fused_ops(tmp_path: Path) -> Callable[[Path], Counter[str]]:
    """Counts the operators of the graph that onnxruntime runs after its fusions."""

    def count(path: Path) -> Counter[str]:
        options = ort.SessionOptions()
        options.log_severity_level = 3  # it warns that such a file is for this machine only
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        ort.InferenceSession(path, options, providers=CPU)
        nodes = onnx.load(tmp_path / "optimised.onnx", load_external_data=False).graph.node
        return Counter(node.op_type for node in nodes)

    return count

"""Which nodes may run on the CPU beside a provider: small computations on shapes.

No provider that splits a graph is in this environment, so the sessions are fakes that report
nodes; tests/openvino has real ones, and scripts/verify_gpu runs CUDA.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.errors import ProviderError
from vit_export.runtime.onnxruntime.options import RawOptions
from vit_export.runtime.onnxruntime.session import check_placement, shape_nodes

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
node = helper.make_node


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> OnnxFile:
    """The head of a third-party export: `reshape(x @ w, (batch, length / 2, -1))`, and a table."""
    nodes = [
        node("MatMul", ["x", "w"], ["m"], name="product"),
        node("Shape", ["m"], ["s"], name="shape"),
        node("Gather", ["s", "zero"], ["b"], name="batch"),
        node("Gather", ["s", "one"], ["n"], name="length"),
        node("Cast", ["n"], ["nf"], name="as_float", to=1),
        node("Mul", ["nf", "half"], ["hf"], name="halved"),
        node("Cast", ["hf"], ["h"], name="as_int", to=7),
        node("Concat", ["b", "h", "rest"], ["t"], name="target", axis=0),
        node("Reshape", ["m", "t"], ["r"], name="reshaped"),
        node("Gather", ["w", "b"], ["row"], name="row"),
        node("Add", ["r", "r"], ["u"]),
        node("Add", ["t", "zero"], ["t2"]),
        node("Mul", ["t2", "one"], ["t3"]),
    ]
    constants = {
        "w": np.ones((64, 64), np.float32), "zero": np.array([0]), "one": np.array([1]),
        "half": np.array(0.5, np.float32), "rest": np.array([-1]),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", 1, ["batch", 4, 64])],
        [helper.make_tensor_value_info("u", 1, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    path = tmp_path_factory.mktemp("third party") / "m.onnx"
    onnx.save(helper.make_model(graph), path)
    return OnnxFile.read(path)


def session_of(active: str, **placed: list[tuple[str, str]]) -> SimpleNamespace:
    """A session that reports nodes (name, operator) by provider."""
    parts = [
        SimpleNamespace(
            ep_name=where,
            get_nodes=lambda nodes=nodes: [
                SimpleNamespace(name=name, op_type=op_type) for name, op_type in nodes
            ],
        )
        for where, nodes in placed.items()
    ]
    return SimpleNamespace(
        get_providers=lambda: [active, CPU], get_provider_graph_assignment_info=lambda: parts
    )


def test_shape_arithmetic_is_followed_through_the_graph(file):
    """From Shape through small constants; not what reads weights or a tensor that was computed."""
    names = {name for name, _ in shape_nodes(file) if name}
    assert names == {"shape", "batch", "length", "as_float", "halved", "as_int", "target"}


def test_nodes_without_a_name_are_known_by_their_operator(file):
    """Unless another node without a name and of the same operator is heavy."""
    assert {op for name, op in shape_nodes(file) if not name} == {"Mul"}


def test_shape_arithmetic_may_run_on_the_cpu(file):
    """ONNX Runtime places it there on purpose; its nodes are counted."""
    on_cpu = [("shape", "Shape"), ("batch", "Gather"), ("halved", "Mul"), ("target", "Concat")]
    session = session_of(CUDA, **{CUDA: [("product", "MatMul")], CPU: on_cpu})
    assert check_placement(session, "cuda", file) == 4
    assert check_placement(session_of(CUDA, **{CUDA: [("product", "MatMul")]}), "cuda", file) == 0


@pytest.mark.parametrize(
    "heavy", [("product", "MatMul"), ("row", "Gather"), ("reshaped", "Reshape"), ("", "Add")]
)
def test_a_heavy_node_on_the_cpu_is_refused_by_name(file, heavy):
    """One that reads weights or the image."""
    session = session_of(CUDA, **{CPU: [("shape", "Shape"), heavy]})
    name, op_type = heavy
    with pytest.raises(
        ProviderError,
        match=rf"m\.onnx: ONNX Runtime placed 1 of its nodes on {CPU} instead of 'cuda': "
        rf"{name} \({op_type}\)",
    ):
        check_placement(session, "cuda", file)


def test_raw_options_are_named_and_checked_first(file):
    """A wrong device is the likely cause, not the model."""
    options = RawOptions(provider="openvino", entries={"device_type": "GPU.1"})
    for active in ("OpenVINOExecutionProvider", CPU):
        session = session_of(active, **{CPU: [("product", "MatMul")]})
        with pytest.raises(
            ProviderError, match=r"with options device_type=GPU\.1.*\nhint: check these options"
        ):
            check_placement(session, "openvino", file, options)


def test_five_of_many_heavy_nodes_are_named(file):
    """The message stays short."""
    session = session_of(CUDA, **{CPU: [(f"n{i}", "Gelu") for i in range(7)]})
    with pytest.raises(ProviderError, match=r"placed 7 of its nodes .*n0 \(Gelu\), .*n4.*, \.\.\."):
        check_placement(session, "cuda", file)


def test_nodes_on_another_gpu_provider_are_refused(file):
    """TensorRT that leaves nodes to CUDA is not the requested provider, even for shapes."""
    session = session_of("TensorrtExecutionProvider", **{CUDA: [("batch", "Gather")]})
    with pytest.raises(ProviderError, match=f"on {CUDA} instead of 'tensorrt': batch"):
        check_placement(session, "tensorrt", file)

"""Artifacts for OpenVINO, and small models that it runs in part."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

ROOT = Path(__file__).parents[2]
EDGE = ROOT / "tests" / "edge" / "data"


@pytest.fixture
def ti16() -> Path:
    """An artifact of a full-size model, which scripts/test-openvino exports."""
    return ROOT / "build" / "openvino" / "ti16.onnx"


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A copy of a small artifact, with its golden file."""
    for name in ("edge.onnx", "edge.golden.npz"):
        shutil.copy(EDGE / name, tmp_path)
    return tmp_path / "edge.onnx"


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Writes `x @ w`, for x of (batch, 4, 8), followed by nodes that end in `y`."""

    def make(*nodes: onnx.NodeProto, **constants: object) -> Path:
        weights = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["m"], name="product"), *nodes],
            "g",
            [helper.make_tensor_value_info("x", 1, ["batch", 4, 8])],
            [helper.make_tensor_value_info("y", 1, None)],
            [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
            + [numpy_helper.from_array(weights, "w")],
        )
        path = tmp_path / "other.onnx"
        opsets = [helper.make_opsetid("", 20)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
        return path

    return make

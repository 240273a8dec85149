"""Smoothing moves outliers into weights, and outputs stay the same to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import constants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from vit_export.graph.int8.dynamic import to_int8_dynamic
from vit_export.graph.int8.select import planned_tensors
from vit_export.graph.int8.smooth import smooth
from vit_export.runtime.onnxruntime.runner import OrtRunner

X = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def names(tiny_export) -> list[str]:
    """Tensors that planned products read."""
    return planned_tensors(tiny_export.path)


@settings(max_examples=15, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_outputs_are_the_same_to_the_bit(tiny_export, names, run_ort, tmp_path, seed, alpha):
    """For any statistics and any alpha."""
    rng = np.random.default_rng(seed)
    reach = {n: np.exp2(rng.uniform(-9, 9, 128 if "Gelu" in n else 32)) for n in names}
    path = tmp_path / "smooth.onnx"
    assert smooth(tiny_export.path, path, reach, alpha=alpha) >= (0 if alpha < 0.2 else 6)
    for found, wanted in zip(run_ort(path, X), run_ort(tiny_export.path, X), strict=True):
        assert np.array_equal(found, wanted)


def test_channels_and_rows_become_equally_large(write_graph, run_ort, tmp_path):
    """A channel of 64 and rows of 1 both become 8; a channel of zeros stays."""
    scale = np.array([1, 64, 1, 0], np.float32)
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g", "g"], ["t"], name="norm/LN"),
        helper.make_node("MatMul", ["t", "w"], ["y"], name="fc/MatMul"),
    ]
    weight = np.ones((4, 2), np.float32)
    source = write_graph(nodes, {"g": scale, "w": weight}, ["n", 4], ["n", 2])
    assert smooth(source, tmp_path / "s.onnx", {"t": scale}) == 1
    values = constants(tmp_path / "s.onnx")
    assert values["norm/LN.smoothed_weight"].tolist() == [1, 8, 1, 0]
    assert values["norm/LN.smoothed_bias"].tolist() == [1, 8, 1, 0]
    assert values["fc/MatMul.smoothed_weight"].tolist() == [[1, 1], [8, 8], [1, 1], [1, 1]]
    assert {"g", "w"}.isdisjoint(values)


def test_dynamic_int8_is_better_after_smoothing_an_outlier(write_graph, run_ort, tmp_path):
    """A channel a thousand times larger than the others leaves them no INT8 levels."""
    rng = np.random.default_rng(0)
    gamma = np.array([1000, *[1] * 31], np.float32)
    weight = rng.standard_normal((32, 16)).astype(np.float32)
    weight[0] /= 1000
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g"], ["t"], name="norm/LN"),
        helper.make_node("Gemm", ["t", "w"], ["y"], name="fc/Gemm", transB=1),
    ]
    source = write_graph(nodes, {"g": gamma, "w": weight.T.copy()}, ["n", 32], ["n", 16])
    x = rng.standard_normal((64, 32)).astype(np.float32)
    (wanted,) = run_ort(source, x)
    off = {}
    smooth(source, tmp_path / "smooth.onnx", {"t": 3 * gamma})
    for name, path in (("plain", source), ("smooth", tmp_path / "smooth.onnx")):
        to_int8_dynamic(path, tmp_path / f"{name}.int8.onnx")
        off[name] = np.abs(run_ort(tmp_path / f"{name}.int8.onnx", x)[0] - wanted).max()
    assert off["smooth"] < off["plain"] / 10


def test_norms_that_other_nodes_read_are_not_smoothed(write_graph, tmp_path):
    """Here a sum."""
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g"], ["t"], name="norm/LN"),
        helper.make_node("MatMul", ["t", "w"], ["z"], name="fc/MatMul"),
        helper.make_node("Add", ["z", "t"], ["y"]),
    ]
    tensors = {"g": np.ones(4, np.float32), "w": np.eye(4, dtype=np.float32)}
    source = write_graph(nodes, tensors, ["n", 4], ["n", 4])
    assert smooth(source, tmp_path / "s.onnx", {"t": np.full(4, 64, np.float32)}) == 0
    assert {"g", "w"} == set(constants(tmp_path / "s.onnx"))


@pytest.mark.parametrize(("axis", "changed"), [(1, 1), (-2, 1), (2, 0), (-1, 0)])
def test_a_norm_is_smoothed_through_slices_of_tokens(write_graph, run_ort, tmp_path, axis, changed):
    """A slice of channels would need other factors."""
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g"], ["t"], name="norm/LN"),
        helper.make_node("Slice", ["t", "start", "stop", "axis"], ["s"], name="read/Slice"),
        helper.make_node("MatMul", ["s", "w"], ["q"], name="q/MatMul"),
        helper.make_node("MatMul", ["t", "v"], ["k"], name="k/MatMul"),
        helper.make_node("MatMul", ["q", "k"], ["y"], name="y/MatMul"),
    ]
    rng = np.random.default_rng(0)
    tensors = {"g": np.ones(4, np.float32), "start": np.array([0]), "stop": np.array([4])}
    tensors |= {name: rng.standard_normal((4, 4)).astype(np.float32) for name in "wv"}
    tensors["axis"] = np.array([axis])
    source = write_graph(nodes, tensors, [2, 4, 4], [2, 4, 4])
    assert smooth(source, tmp_path / "s.onnx", {"t": np.full(4, 64, np.float32)}) == changed
    x = rng.standard_normal((2, 4, 4)).astype(np.float32)
    assert np.array_equal(run_ort(source, x)[0], run_ort(tmp_path / "s.onnx", x)[0])


def test_norms_that_share_constants_get_their_own(write_graph, run_ort, tmp_path):
    """All gammas of a fresh model are 1, and two layers may share a matrix."""
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g"], ["t"], name="a/LN"),
        helper.make_node("MatMul", ["t", "w"], ["z"], name="a/MatMul"),
        helper.make_node("LayerNormalization", ["z", "g"], ["u"], name="b/LN"),
        helper.make_node("MatMul", ["u", "w"], ["y"], name="b/MatMul"),
    ]
    rng = np.random.default_rng(0)
    tensors = {"g": np.ones(4, np.float32), "w": rng.standard_normal((4, 4)).astype(np.float32)}
    source = write_graph(nodes, tensors, ["n", 4], ["n", 4])
    reach = {"t": np.full(4, 64, np.float32), "u": np.full(4, 1 / 64, np.float32)}
    assert smooth(source, tmp_path / "s.onnx", reach) == 2
    x = rng.standard_normal((5, 4)).astype(np.float32)
    assert np.array_equal(run_ort(source, x)[0], run_ort(tmp_path / "s.onnx", x)[0])


def test_statistics_of_the_artifact_smooth_every_norm_before_a_product(
    tiny_export, names, tmp_path
):
    """Two in each block; another node reads the last one. Tensors keep their names."""
    runner = OrtRunner(tiny_export.path, provider="cpu")
    found = runner.expose(names).run({"pixel_values": X})
    reach = {n: 100 * np.abs(found[n]).reshape(-1, found[n].shape[-1]).max(axis=0) for n in names}
    assert smooth(tiny_export.path, tmp_path / "s.onnx", reach) == 6
    assert planned_tensors(tmp_path / "s.onnx") == planned_tensors(tiny_export.path)

"""The checks of ONNX Runtime's CUDA provider, with stand-ins that break each claim."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper

from vit_export import runtime


@pytest.mark.usefixtures("on_the_cpu")
def test_io_binding_fails_where_the_graph_copies_or_the_output_is_elsewhere(tmp_path, monkeypatch):
    """On the CPU it passes."""
    from gpu_checks import cuda
    from gpu_checks.outcome import FailedError

    assert cuda.io_binding(tmp_path)["copies"] == 0
    with monkeypatch.context() as with_copies:
        graph = graph_with_copies(tmp_path)
        with_copies.setattr(cuda, "optimised", lambda *_: graph)
        with pytest.raises(FailedError, match="copies between host and device 2 times"):
            cuda.io_binding(tmp_path)
    monkeypatch.setattr(torch, "randn", lambda *shape, device, randn=torch.randn: randn(*shape))
    monkeypatch.setattr(cuda, "DEVICE", "cuda")
    with pytest.raises(FailedError, match="the output lies on cpu"):
        cuda.io_binding(tmp_path)


def graph_with_copies(tmp_path) -> Path:
    """A graph as ONNX Runtime dumps one with a node that CUDA has no kernel for."""
    ends = [helper.make_tensor_value_info(name, 1, [2]) for name in ("x", "y")]
    nodes = [
        helper.make_node("MemcpyToHost", ["x"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MemcpyFromHost", ["b"], ["y"]),
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:]))
    onnx.save(model, tmp_path / "copies.onnx")
    return tmp_path / "copies.onnx"


def test_the_graph_that_is_searched_for_copies_is_the_one_that_runs(tmp_path):
    """ONNX Runtime has rewritten it; that of another provider says nothing."""
    from gpu_checks.artifacts import EDGE
    from gpu_checks.copies import copies_in, optimised
    from gpu_checks.outcome import FailedError

    dumped = optimised(EDGE, "cpu", tmp_path / "edge.optimised.onnx")
    kinds = {node.op_type for node in onnx.load(dumped).graph.node}
    assert kinds - {node.op_type for node in onnx.load(EDGE).graph.node}
    assert copies_in(dumped) == 0
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(FailedError, match="that of CPUExecutionProvider"),
    ):
        optimised(EDGE, "cuda", tmp_path / "other.onnx")


class Replaying:
    """A session that replays as ONNX Runtime's does.

    Under a number that it has run before it reads and writes the buffers of that first run,
    whatever is bound now.
    """

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self._recorded = {}

    def __getattr__(self, name: str):
        return getattr(self._session, name)

    def run_with_iobinding(self, binding, run_options) -> None:
        number = int(run_options.get_run_config_entry("gpu_graph_id"))
        if number >= 0:
            binding = self._recorded.setdefault(number, binding)
        self._session.run_with_iobinding(binding)


def recording(replays: bool):
    """`runtime.load` on the CPU, with recorded runs where they are asked for."""
    load = runtime.load

    def load_recording(path, *, provider="auto", options=None):
        vit = load(path, provider="cpu")
        if options is not None:
            vit.runner._records_graphs = True
            if replays:
                vit.runner._open_session = Replaying(vit.runner._open_session)
        return vit

    return load_recording


def test_a_graph_counts_as_replayed_only_when_it_writes_where_it_was_recorded(
    tmp_path, monkeypatch
):
    """A provider that runs as ever, graph or not, computes the same and is found out."""
    from gpu_checks import cuda
    from gpu_checks.outcome import FailedError

    monkeypatch.setitem(cuda.PROVIDER_NEEDS, "cuda", lambda: None)
    plain, replaying = recording(replays=False), recording(replays=True)
    monkeypatch.setattr(runtime, "load", replaying)
    measured = cuda.cuda_graph(tmp_path, "edge")
    assert (measured["relative_max_abs"], measured["graphs"]) == (0, 3)
    assert measured["graph_ms"] > 0
    monkeypatch.setattr(runtime, "load", plain)
    with pytest.raises(FailedError, match="0 graphs are replayed, and 3 batch sizes"):
        cuda.cuda_graph(tmp_path, "edge")


def test_a_refusal_counts_only_where_the_provider_loads_otherwise(tmp_path, monkeypatch):
    """The CPU loads with and without a GPU, and `cuda` is not installed here."""
    from gpu_checks import cuda
    from gpu_checks.outcome import FailedError

    for provider in ("cpu", "cuda"):
        monkeypatch.setitem(cuda.PROVIDER_NEEDS, provider, lambda: None)
    with pytest.raises(FailedError, match="it ran on 'cpu' without a GPU"):
        cuda.refusal(tmp_path, "cpu")
    with pytest.raises(FailedError, match="does not load with a visible GPU"):
        cuda.refusal(tmp_path, "cuda")

    def loaded(provider, **environment):
        return {"error": "no device"} if environment else {"provider": provider}

    monkeypatch.setattr(cuda, "_loaded", loaded)
    assert cuda.refusal(tmp_path, "cuda") == {"refused with": "no device"}


def test_an_integer_operator_without_a_kernel_is_no_failure(tmp_path, monkeypatch):
    """The provider refuses; whatever else the gate finds is one."""
    from gpu_checks import cuda
    from gpu_checks.outcome import FailedError, NotRunError

    def fails(why: str):
        def parity(*_):
            raise FailedError(why)

        monkeypatch.setattr(cuda, "parity", parity)

    fails("m.onnx: ONNX Runtime placed 9 of its nodes on CPUExecutionProvider")
    with pytest.raises(NotRunError, match="placed 9 of its nodes"):
        cuda.integer_parity(tmp_path, "cuda", "edge", "int8")
    fails("the gate did not pass")
    with pytest.raises(FailedError, match="did not pass"):
        cuda.integer_parity(tmp_path, "cuda", "edge", "int8")

"""Checks of the provider that really runs a session, and of the installed wheel."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from vit_export.errors import ProviderError
from vit_export.runtime.onnxruntime import providers
from vit_export.runtime.onnxruntime.providers import (
    check_no_fallback,
    check_wheel_usable,
    first_line,
    worth_trying,
)


@pytest.mark.parametrize("other", ["onnxruntime-gpu", "onnxruntime-directml"])
def test_two_wheels_that_overwrite_each_other_are_refused(monkeypatch, other):
    """The hint removes both and installs one."""
    monkeypatch.setattr(providers, "installed_wheels", lambda: ("onnxruntime", other))
    assert worth_trying("cuda")
    with pytest.raises(ProviderError) as caught:
        check_wheel_usable("cuda")
    assert f"onnxruntime and {other} are both installed and overwrite" in str(caught.value)
    assert f"hint: keep one: pip uninstall -y onnxruntime {other} && pip" in str(caught.value)


def session_of(assignment: dict[str, list[tuple[str, str]]], active: str) -> SimpleNamespace:
    """A session that reports these nodes by provider."""
    parts = [
        SimpleNamespace(
            ep_name=name,
            get_nodes=lambda nodes=nodes: [
                SimpleNamespace(name=node, op_type=op) for node, op in nodes
            ],
        )
        for name, nodes in assignment.items()
    ]
    return SimpleNamespace(
        get_providers=lambda: [active, "CPUExecutionProvider"],
        get_provider_graph_assignment_info=lambda: parts,
    )


def test_nodes_that_would_run_on_the_cpu_are_named():
    """But for Shape and Size, whose results are in host memory."""
    session = session_of(
        {
            "CUDAExecutionProvider": [("a", "MatMul")],
            "CPUExecutionProvider": [("b", "Shape"), *((f"n{i}", "Gelu") for i in range(7))],
        },
        "CUDAExecutionProvider",
    )
    with pytest.raises(ProviderError, match=r"m\.onnx: 7 of its nodes.*n0 \(Gelu\), .*n4.*\.\.\."):
        check_no_fallback(session, "cuda", "m.onnx")


def test_a_session_whose_nodes_all_run_on_the_provider_passes():
    """Shape may run on the CPU."""
    assignment = {
        "CUDAExecutionProvider": [("a", "MatMul")], "CPUExecutionProvider": [("b", "Shape")],
    }  # fmt: skip
    check_no_fallback(session_of(assignment, "CUDAExecutionProvider"), "cuda", "m.onnx")


def test_nodes_on_another_gpu_provider_are_an_error_too():
    """TensorRT that leaves nodes to CUDA is not the requested provider."""
    assignment = {
        "TensorrtExecutionProvider": [("a", "MatMul")], "CUDAExecutionProvider": [("b", "Gelu")],
    }  # fmt: skip
    with pytest.raises(ProviderError, match=r"1 of its nodes have no kernel on 'tensorrt'.*Gelu"):
        check_no_fallback(session_of(assignment, "TensorrtExecutionProvider"), "tensorrt", "m.onnx")


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("[ONNXRuntimeError] : 1 : FAIL : no kernel\nmore", "1 : FAIL : no kernel"),
        ("/src/state.cc:729 void f(Options&, const Map&) Please install it", "Please install it"),
        ("/src/is/no/place", "/src/is/no/place"),
        ("", "RuntimeError"),
    ],
)
def test_a_backends_message_is_cut_to_its_first_line(said, shown):
    """Without the source line in C++."""
    assert first_line(RuntimeError(said)) == shown

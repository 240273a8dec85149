"""Probes turn a crash, a hang or a fallback in their child process into an answer."""

from __future__ import annotations

import pytest

from vit_export.host import probes
from vit_export.host.probes import run_probe


def test_a_provider_that_falls_back_is_not_active() -> None:
    """ONNX Runtime's CPU wheel accepts a request for CUDA and runs on the CPU."""
    answer = run_probe(probes.probe_provider, "CUDAExecutionProvider")
    assert answer == {"error": "ONNX Runtime fell back to CPUExecutionProvider"}


def test_a_probe_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "TIMEOUT_S", 0.01)
    answer = run_probe(probes.probe_provider, "CPUExecutionProvider")
    assert answer["error"].startswith("no answer within 0.01 s")


def test_libraries_that_the_loader_does_not_find_are_listed():
    names = ("libc.so.6", "libcublas.so.99")
    assert run_probe(probes.probe_libraries, *names) == {"missing": ["libcublas.so.99"]}

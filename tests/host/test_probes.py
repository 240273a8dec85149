"""Probes in child processes: a crash, a hang or a fallback there is an answer here."""

from __future__ import annotations

import pytest

from vit_export.host import probes as probe


def test_a_provider_that_falls_back_is_not_active() -> None:
    """The CPU wheel accepts a request for CUDA and runs on the CPU."""
    answer = probe.in_child(probe.probe_provider, "CUDAExecutionProvider")
    assert answer == {"error": "ONNX Runtime fell back to CPUExecutionProvider"}


def test_a_probe_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver may hang for ever."""
    monkeypatch.setattr(probe, "TIMEOUT_S", 0.01)
    answer = probe.in_child(probe.probe_provider, "CPUExecutionProvider")
    assert answer == {"error": "no answer within 0.01 s"}


def test_a_plugin_that_is_not_installed_is_absent():
    """No fault: most machines have no use for it."""
    assert probe.in_child(probe.probe_rtx_plugin) == {"absent": "not installed"}


def test_libraries_are_found_by_name_or_named():
    """The C library is everywhere; the other is nowhere."""
    names = ("libc.so.6", "libcublas.so.99")
    assert probe.in_child(probe.probe_libraries, *names) == {"missing": ["libcublas.so.99"]}

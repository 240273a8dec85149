"""Artifacts that the checks run, what they need, and the gate that measures them."""

from __future__ import annotations

import pytest

from vit_export.artifact.onnx_reader import OnnxFile


def test_bf16_is_not_run_on_a_gpu_without_it(tmp_path, monkeypatch):
    """Turing; a GPU that does not say what it is, is tried."""
    from gpu_checks import needs
    from gpu_checks.outcome import NotRunError

    monkeypatch.setattr(needs, "gpu_capability", lambda: (7, 5))
    with pytest.raises(NotRunError, match=r"BF16 needs compute capability 8\.0, .* has 7\.5"):
        needs.need_kernels_for("bf16")
    needs.need_kernels_for("fp16")
    for capability in ((8, 0), (0, 0)):
        monkeypatch.setattr(needs, "gpu_capability", lambda found=capability: found)
        needs.need_kernels_for("bf16")


def test_the_small_artifact_is_there_in_every_precision(tmp_path):
    """As the repository has it, or made without torch; once."""
    from gpu_checks.artifacts import exported
    from gpu_checks.plan import FLOATS, INTEGERS

    for precision in (*FLOATS, *INTEGERS):
        path = exported(tmp_path, "edge", precision)
        assert OnnxFile.read(path).manifest.precision == precision
    made = tmp_path / "edge.bf16.onnx"
    before = made.stat().st_mtime_ns
    assert exported(tmp_path, "edge", "bf16") == made
    assert made.stat().st_mtime_ns == before


def test_the_gate_of_a_check_is_the_gate_of_the_command(tmp_path):
    """Numbers of a real run; another provider than was asked for is a failure."""
    from gpu_checks import artifacts
    from gpu_checks.outcome import FailedError

    measured = artifacts.validated(artifacts.EDGE, "cpu")
    assert measured["max_abs"] <= measured["tolerance"]
    answer = artifacts.command("validate", artifacts.EDGE, "--provider", "cpu")
    with pytest.raises(FailedError, match="'cpu' ran the artifact, expected 'cuda'"):
        artifacts.gate_numbers(answer, "cuda")
    with pytest.raises(FailedError, match=r"provider 'cuda': the installed onnxruntime .* without"):
        artifacts.validated(artifacts.EDGE, "cuda")
    answer["hop"]["passed"] = None
    with pytest.raises(FailedError, match="the gate did not pass"):
        artifacts.gate_numbers(answer, "cpu")

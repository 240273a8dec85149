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


def test_the_gate_of_a_check_is_the_gate_of_the_command():
    """The figures of a real run."""
    from gpu_checks import artifacts

    stage = artifacts.command("validate", artifacts.EDGE, "--provider", "cpu")["hop"]
    measured = artifacts.validated(artifacts.EDGE, "cpu")
    assert {**measured, "batches": list(measured["batches"])}.items() <= stage.items()


def test_a_gate_counts_only_if_it_passed_on_the_provider():
    """Another provider, a failed gate and a provider that does not load are failures."""
    from gpu_checks import artifacts
    from gpu_checks.outcome import FailedError

    stage = OnnxFile.read(artifacts.EDGE).manifest.certificate[-1]
    assert artifacts.gate_numbers(stage, "cpu")["max_abs"] == stage.max_abs
    with pytest.raises(FailedError, match="'cpu' ran the artifact, expected 'cuda'"):
        artifacts.gate_numbers(stage, "cuda")
    with pytest.raises(FailedError, match=r"provider 'cuda': the installed onnxruntime .* without"):
        artifacts.validated(artifacts.EDGE, "cuda")
    failed = stage.replace(passed=False, reasons=("off",))
    with pytest.raises(FailedError, match="the gate did not pass: off"):
        artifacts.gate_numbers(failed, "cpu")


def test_tensorrt_gets_a_profile_with_every_batch_of_the_gate(monkeypatch):
    """Otherwise its provider builds an engine for each batch, within the limit of one check."""
    from gpu_checks import artifacts

    from vit_export import runtime

    load, profiles = runtime.load, []

    def load_on_the_cpu(path, *, provider, options):
        profiles.append((provider, options.profile))
        return load(path, provider="cpu")

    monkeypatch.setattr(runtime, "load", load_on_the_cpu)
    monkeypatch.setattr(artifacts, "gate_numbers", lambda stage, provider: stage.batches)
    for provider in ("tensorrt", "tensorrt-rtx"):
        batches = artifacts.validated(artifacts.EDGE, provider)
        assert profiles.pop() == (provider, (min(batches), max(batches), max(batches)))

"""scripts/verify_gpu with the real GPU wheel: a check that cannot run on a GPU never passes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "verify_gpu"


@pytest.fixture
def only(tmp_path):
    """Runs one check as the script does on a machine with a GPU, and returns its outcome."""

    def run(name: str) -> dict:
        command = [sys.executable, SCRIPT, "--only", name, "--folder", tmp_path]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def test_parity_fails_on_a_provider_that_does_not_start(only):
    outcome = only("cuda parity edge fp32")
    assert outcome["status"] == "FAILED"
    assert "provider 'cuda' cannot start: libcublasLt" in outcome["why"]
    assert "libcublasLt.so.13" in outcome["why"]


def test_a_refusal_proves_nothing_where_the_provider_never_loads(only):
    """It is refused here with and without CUDA_VISIBLE_DEVICES."""
    outcome = only("refusal without a visible GPU: cuda")
    assert outcome["status"] == "FAILED"
    assert outcome["why"].startswith("it does not load with a visible GPU")
    assert "libcublasLt.so.13" in outcome["why"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("cuda IO binding without copies", "not installed: torch"),
        ("refusal without a visible GPU: tensorrt", "linked with TensorRT 10 (libnvinfer.so.10)"),
        ("tensorrt parity edge fp32", "linked with TensorRT 10 (libnvinfer.so.10) and no TensorRT"),
        ("cuda parity edge bf16", "not installed: onnx"),
        ("engine tensorrt b16 fp16-io", "not installed: tensorrt, cuda"),
        ("cuda parity ti16 fp32", "not installed: torch, onnx, onnxscript, onnxsim, safetensors"),
    ],
)
def test_a_check_that_is_not_run_has_its_reason(only, name, why):
    outcome = only(name)
    assert outcome["status"] == "not run"
    assert why in outcome["why"]


def test_doctor_finds_no_fault_here(only):
    outcome = only("doctor finds no fault")
    assert outcome["status"] == "passed"
    assert "run on the CPU" in outcome["measured"]["can"]

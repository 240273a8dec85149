"""scripts/verify_gpu on a machine without a GPU, and the CPU in the GPU's place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vit_export import runtime

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _scripts_can_be_imported(monkeypatch):
    """As the script does it."""
    monkeypatch.syspath_prepend(ROOT / "scripts")


@pytest.fixture
def on_the_cpu(monkeypatch):
    """Whatever provider a check asks for, the CPU runs it; and torch believes in its GPU."""
    from gpu_checks import cuda, needs, speed

    def load_on_the_cpu(path, *, provider="auto", options=None):
        return load(path, provider="cpu")

    load = runtime.load
    monkeypatch.setattr(runtime, "load", load_on_the_cpu)
    for provider in ("cuda", "tensorrt"):
        monkeypatch.setitem(needs.PROVIDER_NEEDS, provider, lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    for module in (cuda, speed):
        monkeypatch.setattr(module, "DEVICE", "cpu")
    for name, value in {"BATCHES": (1, 2), "PEAK_SIZE": 64, "WARMUP_RUNS": 1, "TIMED_RUNS": 2,
                        "TIMED_S": 0}.items():  # fmt: skip
        monkeypatch.setattr(speed, name, value)

"""NVIDIA's driver and GPUs, by what the probe answers."""

from __future__ import annotations

import pytest

from vit_export.host.child_process import Answer
from vit_export.host.doctor import gpu
from vit_export.host.doctor.types import Fact


@pytest.mark.parametrize(
    ("answer", "usable", "faults"),
    [
        ({"absent": "libcuda.so.1: no such file"}, False, 0),
        ({"error": "cuInit: system driver mismatch (803)"}, False, 1),
        ({"cuda": "13.0", "gpus": []}, False, 0),
        ({"cuda": "13.0", "gpus": ["NVIDIA H200, compute capability 9.0, 140 GiB"]}, True, 0),
    ],
)
def test_an_absent_driver_is_no_fault_and_a_broken_one_is(
    monkeypatch: pytest.MonkeyPatch, answer: Answer, usable: bool, faults: int
) -> None:
    monkeypatch.setattr(gpu, "run_probe", lambda probe: answer)
    facts, found = gpu.check_gpu(())
    assert (facts[0].usable, len(found)) == (usable, faults)
    assert len(facts) == 1 + len(answer.get("gpus", ()))


def test_the_capability_is_that_of_the_first_gpu():
    gpus = [Fact("gpu", f"GPU {n}", f"G, compute capability {c}, 1 GiB", True)
            for n, c in enumerate(("12.0", "8.9"))]  # fmt: skip
    assert gpu.capability((Fact("gpu", "driver", "CUDA 13.0", True), *gpus)) == (12, 0)
    assert gpu.capability(()) == (0, 0)

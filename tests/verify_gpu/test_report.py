"""The report of scripts/verify_gpu."""

from __future__ import annotations

import json
from typing import Any

import pytest


def test_the_exit_status_is_0_only_when_an_artifact_ran_and_nothing_failed():
    """Speeds of torch alone are not enough."""
    from gpu_checks.outcome import FAILED, NOT_RUN, PASSED, Check, Outcome
    from gpu_checks.report import exit_status

    checks = [Check("torch", print), Check("artifact", print, runs_artifact=True)]

    def status(torch: str, artifact: str) -> int:
        return exit_status([Outcome("torch", torch), Outcome("artifact", artifact)], checks)

    assert status(PASSED, PASSED) == status(NOT_RUN, PASSED) == 0
    assert status(FAILED, PASSED) == status(PASSED, FAILED) == 1
    assert status(PASSED, NOT_RUN) == status(NOT_RUN, NOT_RUN) == 3


TIMES = {"batch_1_ms": 2.0, "batch_1_images_per_s": 500.0, "batch_64_ms": 16.0,
         "batch_64_images_per_s": 4000.0, "tflops": 140.0, "cosine": 0.99999}  # fmt: skip


def outcomes() -> list[Any]:
    """Return outcomes as the checks return them."""
    from gpu_checks.outcome import FAILED, NOT_RUN, PASSED, Outcome

    return [
        Outcome("matmul peak, float16", PASSED, measured={"peak_tflops": 700.0}, seconds=3.0),
        Outcome("speed GPU: torch eager", PASSED, measured=TIMES, seconds=9.0),
        Outcome("speed GPU: engine tensorrt", NOT_RUN, "not installed: tensorrt"),
        Outcome("speed host: torch eager", PASSED, measured=TIMES, seconds=9.0),
        Outcome("cuda parity ti16 fp32", FAILED, "the gate did not pass: max|y - y64| = 1"),
    ]


def test_the_report_shows_speeds_as_shares_of_the_measured_peak(tmp_path):
    """A table for each place of images and results, and a plot."""
    from gpu_checks.report import to_text, write

    json_path, markdown_path, plot = write(tmp_path, {"GPU 0": "NVIDIA H100"}, outcomes())
    text = markdown_path.read_text()
    gpu, host = text.index("## Speed: images and results on the GPU"), text.index("## Speed: numpy")
    assert "| torch eager | 2 | 16 | 4000 | 20 % | 1 |" in text[gpu:host]
    assert "| engine tensorrt | not run | not run | - | - | - |" in text[gpu:host]
    assert "| torch eager | 2 | 16 | 4000 | 20 % | 1 |" in text[host:]
    assert r"| cuda parity ti16 fp32 | FAILED | the gate did not pass: max\|y - y64\| = 1 |" in text
    assert "- GPU 0: NVIDIA H100" in text
    assert f"({plot.name})" in text
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "3 passed, 1 FAILED, 1 not run" in to_text(outcomes())
    found = json.loads(json_path.read_text())
    assert found["peak_tflops"] == 700.0
    assert found["checks"][1]["measured"] == TIMES


def test_what_passed_is_read_back_from_the_report_of_the_same_machine(tmp_path):
    """With what was measured; a report of other packages or of another GPU is refused."""
    from gpu_checks.report import passed_before, write

    machine = {"GPU 0": "NVIDIA H100", "torch": "2.13.0"}
    assert passed_before(tmp_path, machine) == {}
    write(tmp_path, machine, outcomes())
    passed = passed_before(tmp_path, machine)
    assert list(passed) == [o.name for o in outcomes() if o.status == "passed"]
    assert passed["speed GPU: torch eager"].measured == TIMES
    with pytest.raises(SystemExit, match=r"another state of this machine \(torch changed\)"):
        passed_before(tmp_path, {**machine, "torch": "2.14.0"})

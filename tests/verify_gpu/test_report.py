"""The report of scripts/verify_gpu."""

from __future__ import annotations

import json


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


def test_the_report_shows_speeds_as_shares_of_the_measured_peak(tmp_path):
    """From outcomes as the checks return them."""
    from gpu_checks.outcome import FAILED, NOT_RUN, PASSED, Outcome
    from gpu_checks.report import to_text, write

    times = {"batch_1_ms": 2.0, "batch_1_images_per_s": 500.0, "batch_64_ms": 16.0,
             "batch_64_images_per_s": 4000.0, "tflops": 140.0, "cosine": 0.99999}  # fmt: skip
    outcomes = [
        Outcome("matmul peak, float16", PASSED, measured={"peak_tflops": 700.0}, seconds=3.0),
        Outcome("speed torch eager b16 fp16", PASSED, measured=times, seconds=9.0),
        Outcome("speed engine tensorrt b16 fp16", NOT_RUN, "not installed: tensorrt"),
        Outcome("cuda parity ti16 fp32", FAILED, "the gate did not pass: max|y - y64| = 1"),
    ]
    json_path, markdown_path = write(tmp_path, {"GPU 0": "NVIDIA H100"}, outcomes)
    text = markdown_path.read_text()
    assert "| torch eager b16 fp16 | 2 | 16 | 4000 | 20 % | 1 |" in text
    assert "| engine tensorrt b16 fp16 | not run | not run | - | - | - |" in text
    assert r"| cuda parity ti16 fp32 | FAILED | the gate did not pass: max\|y - y64\| = 1 |" in text
    assert "- GPU 0: NVIDIA H100" in text
    assert "2 passed, 1 FAILED, 1 not run" in to_text(outcomes)
    found = json.loads(json_path.read_text())
    assert found["peak_tflops"] == 700.0
    assert found["checks"][1]["measured"] == times

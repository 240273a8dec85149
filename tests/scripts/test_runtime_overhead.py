"""scripts/runtime_overhead: what it compares, prints and refuses to compare."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "runtime_overhead"


@pytest.fixture
def script() -> dict:
    """What the script defines, without its run."""
    return runpy.run_path(str(SCRIPT))


def test_it_measures_a_tiny_model(tiny_export):
    """One round as it is typed; the ratios follow from the times."""
    line = [sys.executable, str(SCRIPT), str(tiny_export.path)]
    done = subprocess.run(
        [*line, "--rounds", "1", "--runs", "2", "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    rows = report["measurements"]
    assert [(row["measurement"], row["limit"]) for row in rows] == [
        ("start", 1.3), ("run", 1.02), ("classify", 0.7),
    ]  # fmt: skip
    for row in rows:
        for kind in ("wall", "processor"):
            ratio = row[f"{kind}_ours_s"] / row[f"{kind}_bare_s"]
            assert row[f"{kind}_ratio"] == pytest.approx(ratio)
            assert row[f"{kind}_met"] == (ratio <= row["limit"])


@pytest.mark.parametrize(
    ("words", "reason"),
    [(["absent.onnx"], "absent.onnx: no such file"), (["--rounds", "0"], "expected at least 1")],
)
def test_wrong_words_are_refused_in_one_sentence(words, reason):
    done = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True)
    assert done.returncode != 0
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


def test_programs_that_compute_different_results_are_not_compared(script):
    """Such as a bare program with another mean."""
    programs, environment = script["PROGRAMS"], {}
    programs.clear()
    programs["run"] = {"ours": "print('[0.5]')", "bare": "print('[0.6]')"}
    with pytest.raises(SystemExit, match="run: the programs compute different results"):
        script["measure"]("", 1, environment)


def test_other_pixels_end_the_script(script, tiny_export, photographs):
    """They must be those of the package to the bit."""
    preprocess = script["OnnxFile"].read(tiny_export.path).manifest.preprocess
    values = {"photos": photographs, "size": preprocess.size[0], "crop_pct": preprocess.crop_pct,
              "interpolation": preprocess.interpolation, "mean": preprocess.mean,
              "std": preprocess.std}  # fmt: skip
    script["check_same_pixels"](values, preprocess)
    with pytest.raises(SystemExit, match="does not prepare images as this artifact does"):
        script["check_same_pixels"]({**values, "interpolation": "bilinear"}, preprocess)

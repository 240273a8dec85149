"""Files written by version 0.1 still load, validate and predict the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from vit_export.artifact.engine_sidecar import Sidecar
from vit_export.cli.main import main

DATA = Path(__file__).parents[1] / "data" / "version_0_1"
ARTIFACTS = ("digits", "digits.fp16")


def run(*arguments: str | Path) -> dict:
    """Run a command that must succeed, and read its JSON."""
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ARTIFACTS)
def test_an_artifact_predicts_the_same(name: str) -> None:
    """Classes and labels are equal, scores to the last digits."""
    (now,) = run("predict", DATA / f"{name}.onnx", DATA / "scan.png", "--top", "3")["predictions"]
    (before,) = json.loads((DATA / f"{name}.predict.json").read_text())["predictions"]
    for row, expected in zip(now["top"], before["top"], strict=True):
        assert (row["index"], row["label"]) == (expected["index"], expected["label"])
        assert row["score"] == pytest.approx(expected["score"], rel=1e-4)


@pytest.mark.parametrize("name", ARTIFACTS)
def test_an_artifact_passes_its_gate_by_its_golden_file(name: str) -> None:
    """The golden file of then measures the artifact of then."""
    assert run("validate", DATA / f"{name}.onnx")["passed"] is True


def test_an_engine_sidecar_is_read() -> None:
    """What an engine was built from, for which GPU, and its certificate."""
    sidecar = Sidecar.read(DATA / "digits.fp16.engine")
    stages = [stage.name for stage in sidecar.manifest.certificate]
    assert stages[0] == "torch -> onnx"
    assert stages[-1] == "onnx -> tensorrt-rtx engine"
    assert sidecar.manifest.passed is None
    assert sidecar.compute_capabilities == ("8.9",)


def test_an_artifact_can_be_quantized(tmp_path: Path) -> None:
    """Its manifest and golden file are enough."""
    for name in ("digits.onnx", "digits.golden.npz"):
        shutil.copy(DATA / name, tmp_path)
    made = run("quantize", tmp_path / "digits.onnx", "--precision", "int8")
    assert made["passed"] is True
    assert made["manifest"]["conversion"]["source_sha256"]


def test_a_checkpoint_gives_the_artifact_of_then(tmp_path: Path) -> None:
    """Config, labels and preparation come from the checkpoint; the classes are the same."""
    output = tmp_path / "digits.onnx"
    exported = run("onnx", "--weights", DATA / "digits.safetensors", "-o", output)
    assert exported["manifest"]["labels"] == list("0123456789")
    (now,) = run("predict", output, DATA / "scan.png", "--top", "3")["predictions"]
    (before,) = json.loads((DATA / "digits.predict.json").read_text())["predictions"]
    assert [row["label"] for row in now["top"]] == [row["label"] for row in before["top"]]

"""Commands run in a folder with files named like libraries, and print no line of a library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRAPS = ("json", "click", "torch", "numpy", "onnx", "onnxruntime", "PIL", "msgspec", "statistics")


def run(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `python -m vit_export` in a folder."""
    return subprocess.run(
        [sys.executable, "-m", "vit_export", *map(str, arguments)],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


@pytest.fixture
def trapped(tmp_path: Path) -> Path:
    """A folder with files that fail when they are imported in place of a library."""
    for name in TRAPS:
        (tmp_path / f"{name}.py").write_text(f"raise SystemError('the wrong {name}')\n")
    return tmp_path


@pytest.mark.parametrize("command", ["predict", "bench", "doctor"])
def test_a_file_named_like_a_library_breaks_no_command(command, trapped, tiny_export, photographs):
    """Child processes of doctor and bench included."""
    arguments = {
        "predict": [tiny_export.path, photographs[0]],
        "bench": [tiny_export.path, "--rounds", "1", "--min-time", "0", "--warmup", "0"],
        "doctor": [],
    }[command]
    done = run(command, *arguments, "--json", folder=trapped)
    assert done.returncode == 0, done.stderr
    assert "the wrong" not in done.stdout + done.stderr
    assert "error" not in json.loads(done.stdout.splitlines()[-1])


def test_a_module_of_the_current_folder_is_exported_without_a_line_of_another_library(trapped):
    """Only `--module` imports from that folder; standard error lists the steps alone."""
    (trapped / "user_model.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.Flatten(), nn.Linear(16, 5))\n"
    )
    arguments = ("--module", "user_model:make", "--img-size", "16", "-o", "m.onnx")
    done = run("onnx", *arguments, folder=trapped)
    assert done.returncode == 0, done.stderr
    assert (trapped / "m.onnx").exists()
    assert done.stderr.splitlines() == [
        "load the model", "torch -> onnx", "measure torch -> onnx",
        "measure onnx -> simplified",
    ]  # fmt: skip
    assert "torchvision" not in done.stdout

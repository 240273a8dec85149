"""What reports load, seen from a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import vit_export.cli.report

PLOTS = {"plot_style", "error_plot", "latency_plot", "training_plot"}
SCRIPT = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(f"vit_export.cli.report.{name}")
print(*sorted({"torch", "onnx", "onnxruntime", "matplotlib"} & set(sys.modules)))
"""


def loaded(names: set[str]) -> list[str]:
    command = [sys.executable, "-c", SCRIPT, *sorted(names)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def test_reports_load_no_torch_and_no_onnx_and_only_plots_load_matplotlib():
    modules = {path.stem for path in Path(vit_export.cli.report.__file__).parent.glob("[a-z]*.py")}
    assert loaded(modules - PLOTS) == []
    assert loaded(PLOTS) == ["matplotlib"]

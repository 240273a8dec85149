"""What reports load, seen from a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import vit_export.cli.report

SCRIPT = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(f"vit_export.cli.report.{name}")
print(*sorted({"torch", "onnx", "onnxruntime", "matplotlib"} & set(sys.modules)))
"""


def test_reports_load_no_torch_no_onnx_and_no_matplotlib():
    modules = sorted(p.stem for p in Path(vit_export.cli.report.__file__).parent.glob("[a-z]*.py"))
    command = [sys.executable, "-c", SCRIPT, *modules]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() == []

"""What each part of the package really loads, seen from fresh interpreters."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import vit_export
from vit_export.runtime import load

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vit_export"

BACKENDS = {"torch", "onnx", "onnx_ir", "onnxscript", "onnxsim", "onnxruntime", "tensorrt"}
ONNX = {"onnx", "onnx_ir", "onnxscript", "onnxsim", "onnxruntime"}
TORCH_SIDE = tuple(
    f"vit_export.{name}"
    for name in (
        *("model", "checkpoint", "reference", "training", "graph", "quantization", "pipeline"),
        *("benchmark.torch_runner", "benchmark.torch_worker", "cli.report.training_plot"),
    )
)
STANDARD_LIBRARY_ONLY = ("errors", "variants", "progress")

# Imports the modules named on the command line in turn, and tells what each has brought.
TELL = """
import importlib, json, sys
brought = {}
for name in sys.argv[1:]:
    before = set(sys.modules)
    importlib.import_module(name)
    tops = {module.partition(".")[0] for module in set(sys.modules) - before}
    brought[name] = sorted(tops - set(sys.stdlib_module_names) - {"vit_export"})
print(json.dumps(brought))
"""


def modules(*, under: str = "") -> list[str]:
    """Dotted names of the modules on disk."""
    paths = sorted((PACKAGE / under).rglob("*.py"))
    parts = [path.relative_to(ROOT).with_suffix("").parts for path in paths]
    return [".".join(part).removesuffix(".__init__") for part in parts if part[-1] != "__main__"]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter, and fail with what it says where it fails."""
    command = [sys.executable, *arguments]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    return child


def brought(names: list[str]) -> dict[str, set[str]]:
    """Third-party packages that each module loads, beyond those loaded before it."""
    child = python("-c", TELL, *names)
    return {name: set(found) for name, found in json.loads(child.stdout).items()}


def offenders(names: list[str], forbidden: set[str]) -> dict[str, set[str]]:
    """Those of the modules that load something forbidden, and what."""
    found = brought(names)
    return {name: loaded & forbidden for name, loaded in found.items() if loaded & forbidden}


def test_importing_the_package_loads_nothing_else() -> None:
    """`import vit_export` costs nothing."""
    assert brought(["vit_export"]) == {"vit_export": set()}


def test_public_names_are_loaded_when_used() -> None:
    """Each name of the package is found, listed by `dir`, and declared in the type stub."""
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
    declared = next(
        {ast.literal_eval(name) for name in node.value.elts}
        for node in stub.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List)
    )
    assert declared == set(vit_export.__all__) == set(dir(vit_export))
    for name in declared - {"__version__"}:
        assert callable(getattr(vit_export, name))
    assert vit_export.load is load
    with pytest.raises(AttributeError, match="no attribute 'exprot'"):
        _ = vit_export.exprot


def test_the_words_need_only_the_standard_library() -> None:
    """A device can read an .onnx file and its manifest with bare Python."""
    names = [f"vit_export.{name}" for name in STANDARD_LIBRARY_ONLY]
    assert {name: loaded for name, loaded in brought(names).items() if loaded} == {}


def test_nothing_but_the_torch_side_loads_torch_or_onnx() -> None:
    """What a device runs, and the doors, import neither; the doors load them when they work."""
    names = [name for name in modules() if not name.startswith(TORCH_SIDE)]
    assert {"vit_export.runtime", "vit_export.gate.validate"} <= set(names)
    assert offenders(names, {"torch", "onnx", "onnx_ir", "onnxscript", "onnxsim"}) == {}


def test_the_network_loads_no_onnx() -> None:
    """A model can be trained and its checkpoint read where torch alone is installed."""
    assert offenders(modules(under="model"), ONNX) == {}


def test_help_loads_no_backend() -> None:
    """`vit-export --help` answers at once."""
    child = python("-X", "importtime", "-m", "vit_export", "--help")
    loaded = {line.rpartition("|")[2].strip() for line in child.stderr.splitlines()}
    assert "vit_export.cli.main" in loaded
    assert loaded & (BACKENDS | {"numpy", "PIL", "safetensors"}) == set()
    assert "Usage:" in child.stdout

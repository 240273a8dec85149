"""What each part of the package imports, measured in fresh interpreters."""

from __future__ import annotations

import ast
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import vit_export
from vit_export import runtime

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vit_export"

ONNX = {"onnx", "onnx_ir", "onnxscript", "onnxsim"}
ONNX_AND_TORCH = {*ONNX, "torch", "safetensors"}
BACKENDS = {"onnxruntime", "tensorrt", "tensorrt_rtx", "cuda"}

# Imports the modules given on the command line one after the other, and prints which other
# packages each of them has loaded.
REPORT = """
import importlib, json, sys
loaded = {}
for name in sys.argv[1:]:
    before = set(sys.modules)
    importlib.import_module(name)
    packages = {module.partition(".")[0] for module in set(sys.modules) - before}
    loaded[name] = sorted(packages - set(sys.stdlib_module_names) - {"vit_export"})
print(json.dumps(loaded))
"""


def modules(*folders: str) -> list[str]:
    """Dotted names of the modules in files and folders of the package."""
    paths = [
        path
        for folder in folders
        for path in (sorted((PACKAGE / folder).rglob("*.py")) or [PACKAGE / f"{folder}.py"])
    ]
    parts = [path.relative_to(ROOT).with_suffix("").parts for path in paths]
    return [".".join(part).removesuffix(".__init__") for part in parts]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter, which must succeed."""
    command = [sys.executable, *arguments]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    return child


def loaded(names: list[str]) -> dict[str, set[str]]:
    """Packages that each module loads, beyond those loaded by the modules before it."""
    child = python("-c", REPORT, *names)
    return {name: set(packages) for name, packages in json.loads(child.stdout).items()}


def offenders(names: list[str], forbidden: set[str]) -> dict[str, set[str]]:
    """Modules that load something forbidden, and what."""
    return {
        name: packages & forbidden
        for name, packages in loaded(names).items()
        if packages & forbidden
    }


def test_importing_the_package_loads_nothing_else() -> None:
    """`import vit_export` costs nothing."""
    assert loaded(["vit_export"]) == {"vit_export": set()}


def test_the_package_can_be_used_from_bare_python() -> None:
    """Errors, variants and progress need the standard library only."""
    names = modules("errors", "variants", "progress")
    assert {name for name, packages in loaded(names).items() if packages} == set()


def test_importing_the_runtime_loads_no_numpy_and_no_backend() -> None:
    """It takes less time than `import onnxruntime`; loading a file imports the rest."""
    (packages,) = loaded(["vit_export.runtime"]).values()
    assert packages & {"numpy", "PIL", "onnxruntime", "cuda", *ONNX_AND_TORCH} == set()


def test_a_device_needs_neither_torch_nor_onnx() -> None:
    """To run and validate artifacts, prepare images, compare artifacts and print results."""
    names = modules("artifact", "runner", "host", "images", "gate", "runtime", "benchmark",
                    "cli")  # fmt: skip
    with_torch = "vit_export.benchmark.torch_"  # the child process that runs the torch model
    names = [name for name in names if not name.startswith(with_torch)]
    assert {"vit_export.runtime.model", "vit_export.gate.validate"} <= set(names)
    assert offenders(names, ONNX_AND_TORCH) == {}


def test_models_and_checkpoints_need_no_onnx() -> None:
    """A model can be trained and its checkpoint read where only torch is installed."""
    names = modules("model", "checkpoint", "reference", "training")
    assert offenders(names, {*ONNX, "onnxruntime"}) == {}


def test_only_the_export_loads_torch_and_onnx_together() -> None:
    """Graphs are converted without torch."""
    needs_torch = {"vit_export.graph.export", "vit_export.graph.simplify"}  # onnxsim imports it
    names = [name for name in modules("graph") if name not in needs_torch]
    assert offenders(names, {"torch"}) == {}


def test_help_loads_no_backend_and_takes_little_time() -> None:
    """0.15 s on an idle machine; the limit here is processor time, for busy ones."""
    child = python("-X", "importtime", "-m", "vit_export", "--help")
    imported = {line.rpartition("|")[2].strip() for line in child.stderr.splitlines()}
    assert "vit_export.cli.main" in imported
    assert imported & {*BACKENDS, *ONNX_AND_TORCH, "numpy", "PIL", "rich"} == set()
    assert "Usage:" in child.stdout

    def processor_seconds() -> float:
        before = os.times()
        python("-m", "vit_export", "--help")
        after = os.times()
        return (
            after.children_user + after.children_system
            - before.children_user - before.children_system
        )  # fmt: skip

    assert statistics.median(processor_seconds() for _ in range(5)) < 0.4


def test_public_names_are_imported_when_used() -> None:
    """Each is found, listed by `dir`, and declared in the type stub."""
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    declared = {"__version__", *(name.asname for node in imports for name in node.names)}
    assert declared == set(vit_export.__all__) == set(dir(vit_export))
    assert {"export", "quantize", "build_engine", "validate", "load"} < declared
    for module in (vit_export, runtime):
        for name in set(module.__all__) - {"__version__"}:
            assert callable(getattr(module, name))
        with pytest.raises(AttributeError, match="no attribute 'exprot'"):
            _ = module.exprot
    assert vit_export.load is runtime.load

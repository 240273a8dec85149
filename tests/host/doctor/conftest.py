"""Machines with one thing wrong: packages laid in front of the installed ones."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import pytest

Install = Callable[..., None]

# What onnxruntime-gpu does where CUDA is missing: no error, and a session on the CPU.
FALLING_BACK = """
def get_available_providers():
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]

def preload_dlls():
    print("Failed to load libcublasLt.so.13")

class InferenceSession:
    def __init__(self, model, providers):
        if providers == ["CUDAExecutionProvider"]:
            os.write(2, b"FAIL : Failed to load library x.so with error: libcublasLt.so.13: "
                        b"cannot open shared object file: No such file or directory\\n")

    def get_providers(self):
        return ["CPUExecutionProvider"]

    def run(self, outputs, feeds):
        return [feeds["x"] @ feeds["x"]]

import os
"""


@pytest.fixture
def falling_back() -> str:
    """Source of a module that behaves as the GPU wheel without CUDA."""
    return FALLING_BACK


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Lay a distribution, with a module if its source is given, in front of the installed ones."""

    def put(
        distribution: str, version: str, *, module: str = "", source: str | None = None
    ) -> None:
        info = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        about = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        (info / "METADATA").write_text(about)
        (info / "top_level.txt").write_text(f"{module or distribution}\n")
        if source is not None:
            (tmp_path / module).mkdir()
            (tmp_path / module / "__init__.py").write_text(source)

    monkeypatch.syspath_prepend(tmp_path)
    return put


@pytest.fixture
def gpu_wheel_without_cuda(install: Install, tmp_path: Path, no_wheel: None) -> None:
    """The GPU wheel alone, on a machine that lacks the CUDA libraries."""
    install("onnxruntime-gpu", "1.31.1", module="onnxruntime", source=FALLING_BACK)
    (tmp_path / "onnxruntime" / "capi").mkdir()
    (tmp_path / "onnxruntime" / "capi" / "__init__.py").touch()
    info = tmp_path / "onnxruntime" / "capi" / "build_and_package_info.py"
    info.write_text('cuda_version = "13.0"\n')


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the onnxruntime wheel that the tests themselves need."""
    owners = importlib.metadata.packages_distributions

    def without_it() -> dict[str, list[str]]:
        return {m: [n for n in names if n != "onnxruntime"] for m, names in owners().items()}

    monkeypatch.setattr(importlib.metadata, "packages_distributions", without_it)

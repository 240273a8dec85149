"""NVIDIA libraries of ONNX Runtime's wheels; tests/gpu_wheel tests the real GPU wheel."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess

import pytest

from vit_export.host import nvidia

TENSORRT_10 = ("libcublas.so.13", "libnvinfer.so.10", "libnvonnxparser.so.10", "libcudart.so.13")


@pytest.fixture
def linked_with_tensorrt_10(monkeypatch):
    """The libraries that onnxruntime-gpu 1.31 is linked with."""
    monkeypatch.setattr(nvidia, "provider_libraries", lambda provider: TENSORRT_10)


def test_the_cpu_wheel_is_linked_with_no_library_of_nvidia():
    assert nvidia.provider_libraries("TensorrtExecutionProvider") == ()
    assert nvidia.provider_libraries("NoSuchProvider") == ()
    assert nvidia.tensorrt_conflict() is None


@pytest.mark.parametrize(
    ("installed", "sentence"),
    [
        ("10.16.1.11", ""),
        ("11.4.0.106", "linked with TensorRT 10 (libnvinfer.so.10) and TensorRT 11.4.0.106 is"),
        ("", "linked with TensorRT 10 (libnvinfer.so.10) and no TensorRT wheel is installed"),
    ],
)
@pytest.mark.usefixtures("linked_with_tensorrt_10")
def test_tensorrt_of_another_major_version_is_a_conflict(monkeypatch, installed, sentence):
    monkeypatch.setattr(nvidia, "version_of", lambda *names: installed)
    conflict = nvidia.tensorrt_conflict()
    assert bool(conflict) == bool(sentence)
    if conflict:
        assert sentence in conflict[0]
        assert conflict[1] == "pip install 'tensorrt-cu13>=10,<11'"


def test_the_version_is_that_of_the_first_wheel_installed():
    import numpy as np

    assert nvidia.version_of("no-such-wheel", "numpy") == np.__version__
    assert nvidia.version_of("no-such-wheel") == ""


@pytest.mark.parametrize(
    ("owners", "wheels"),
    [
        (["onnxruntime"], ("onnxruntime",)),
        (["onnxruntime_gpu", "onnxruntime", "onnxruntime"], ("onnxruntime", "onnxruntime-gpu")),
        (["onnxruntime", "onnxruntime-directml"], ("onnxruntime", "onnxruntime-directml")),
    ],
)
def test_wheels_of_onnxruntime_are_those_that_contain_the_module(monkeypatch, owners, wheels):
    """Whatever their names are, and in whatever order they were installed."""
    owners = {"onnxruntime": owners, "onnxruntime_extensions": ["onnxruntime-extensions"]}
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: owners)
    assert nvidia.onnxruntime_wheels() == wheels


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_a_library_is_listed_with_what_it_is_linked_with(tmp_path):
    """Also what the loader does not find; another kind of file is linked with nothing."""
    (tmp_path / "empty.c").touch()
    (tmp_path / "libcudart.so.13").write_bytes(b"")
    folder = str(tmp_path)
    for command in (
        ["cc", "-shared", "-Wl,-soname,libcudart.so.13", "-o", "libcudart.so.13", "empty.c"],
        ["cc", "-shared", "-Wl,--no-as-needed", "-o", "libx.so", "empty.c", "libcudart.so.13"],
    ):
        subprocess.run(command, cwd=folder, check=True)
    (tmp_path / "libcudart.so.13").unlink()
    assert nvidia.linked_libraries(tmp_path / "libx.so") == ("libcudart.so.13",)
    assert nvidia.linked_libraries(tmp_path / "empty.c") == ()
    assert nvidia.linked_libraries(tmp_path / "not there") == ()


def test_a_major_version_is_read_from_a_library_name():
    """Whole stems only: `libcublasLt` is not `libcublas`."""
    assert nvidia.major_version(("libcublasLt.so.12", "libcublas.so.13"), "libcublas") == "13"
    assert nvidia.major_version((), "libcublas") == ""


def test_loading_tensorrt_where_it_is_not_installed_does_nothing():
    nvidia.load_tensorrt()

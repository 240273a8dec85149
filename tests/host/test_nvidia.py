"""Which TensorRT goes with which ONNX Runtime; the real GPU wheel is asked in tests/gpu_wheel."""

from __future__ import annotations

import importlib.metadata

import pytest

from vit_export.host import nvidia

TENSORRT_10 = ("libcublas.so.13", "libnvinfer.so.10", "libnvonnxparser.so.10", "libcudart.so.13")


@pytest.fixture
def linked_with_tensorrt_10(monkeypatch):
    """What the library of onnxruntime-gpu 1.31 asks for."""
    monkeypatch.setattr(nvidia, "libraries_of", lambda provider: TENSORRT_10)


def test_the_wheel_of_the_tests_is_linked_with_nothing_of_nvidia():
    """It is for the CPU: there is nothing to be in conflict with."""
    assert nvidia.libraries_of("TensorrtExecutionProvider") == ()
    assert nvidia.libraries_of("NoSuchProvider") == ()
    assert nvidia.tensorrt_conflict() == ""


@pytest.mark.parametrize(
    ("installed", "sentence"),
    [
        ("10.16.1.11", ""),
        ("11.4.0.106", "linked with TensorRT 10 (libnvinfer.so.10) and TensorRT 11.4.0.106 is"),
        ("", "linked with TensorRT 10 (libnvinfer.so.10) and no TensorRT wheel is installed"),
    ],
)
@pytest.mark.usefixtures("linked_with_tensorrt_10")
def test_another_major_version_is_named_with_the_command(monkeypatch, installed, sentence):
    """TensorRT 11 beside a provider that is linked with 10."""
    monkeypatch.setattr(nvidia, "version_of", lambda *names: installed)
    found = nvidia.tensorrt_conflict()
    assert sentence in found
    assert found.endswith("pip install 'tensorrt-cu13>=10,<11'") == bool(sentence)


def test_the_version_is_that_of_the_first_wheel_installed():
    """The first is not there, numpy is."""
    import numpy as np

    assert nvidia.version_of("no-such-wheel", "numpy") == np.__version__
    assert nvidia.version_of("no-such-wheel") == ""


@pytest.mark.parametrize(
    ("brought_by", "wheels"),
    [
        (["onnxruntime"], ("onnxruntime",)),
        (["onnxruntime_gpu", "onnxruntime", "onnxruntime"], ("onnxruntime", "onnxruntime-gpu")),
        (["onnxruntime", "onnxruntime-directml"], ("onnxruntime", "onnxruntime-directml")),
    ],
)
def test_wheels_of_onnxruntime_are_those_that_bring_the_module(monkeypatch, brought_by, wheels):
    """Whatever their names are, and in whatever order they were installed."""
    owners = {"onnxruntime": brought_by, "onnxruntime_extensions": ["onnxruntime-extensions"]}
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: owners)
    assert nvidia.onnxruntime_wheels() == wheels


def test_majors_are_read_off_names():
    """Whole stems only: `libcublasLt` is not `libcublas`."""
    assert nvidia.major_of(("libcublasLt.so.12", "libcublas.so.13"), "libcublas") == "13"
    assert nvidia.major_of((), "libcublas") == ""


def test_loading_tensorrt_where_there_is_none_does_nothing():
    """The provider's own error says what is missing."""
    nvidia.load_tensorrt()

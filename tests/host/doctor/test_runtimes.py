"""Wheels of ONNX Runtime, and the libraries of NVIDIA that they need."""

from __future__ import annotations

import pytest

from vit_export.host.doctor import runtimes
from vit_export.host.doctor.types import Fact, Facts, Fault

CUDA_LIBRARIES = ("libcublasLt.so.13", "libcublas.so.13", "libcudart.so.13", "libcuda.so.1")
TENSORRT_LIBRARIES = ("libnvinfer.so.10", "libcudart.so.13", "libcudnn.so.9")


def with_gpu(cuda: str) -> Facts:
    """What check_nvidia finds on a machine with a GPU."""
    return (Fact("gpu", "driver", f"CUDA {cuda}", usable=True),)


@pytest.mark.usefixtures("gpu_wheel_without_cuda")
def test_an_idle_gpu_is_a_fault_that_names_the_missing_library() -> None:
    """ONNX Runtime only logs it."""
    facts, (fault,) = runtimes.check_onnxruntime(with_gpu("13.1"))
    assert "CUDAExecutionProvider does not run: libcublasLt.so.13: cannot open" in fault.what
    assert fault.remedy == "pip install --upgrade 'vit-export[gpu]'"
    assert [fact.usable for fact in facts] == [False, True]


@pytest.mark.usefixtures("gpu_wheel_without_cuda")
def test_a_driver_too_old_for_the_wheel_is_named() -> None:
    """No package mends that."""
    _, (fault,) = runtimes.check_onnxruntime(with_gpu("12.4"))
    assert "built for CUDA 13.0, the driver is for 12.4" in fault.what
    assert fault.remedy == "update the NVIDIA driver to one for CUDA 13.0 or newer"


@pytest.mark.usefixtures("gpu_wheel_without_cuda")
def test_a_gpu_wheel_without_a_gpu_is_no_fault() -> None:
    """It runs on the CPU, and the facts say that CUDA is not active."""
    facts, faults = runtimes.check_onnxruntime(())
    assert faults == ()
    assert facts[0].value.startswith("compiled in, not active: libcublasLt.so.13")


@pytest.fixture
def linked(monkeypatch) -> None:
    """What the libraries of onnxruntime-gpu 1.31 ask for."""
    found = {runtimes.CUDA: CUDA_LIBRARIES, runtimes.TENSORRT: TENSORRT_LIBRARIES}
    monkeypatch.setattr(runtimes, "libraries_of", lambda provider: found[provider])


def missing(monkeypatch, *names: str) -> None:
    """The loader finds all libraries but these."""
    monkeypatch.setattr(runtimes, "in_child", lambda probe, *asked: {"missing": list(names)})


@pytest.mark.usefixtures("linked")
def test_cublas_that_the_cuda_extra_does_not_bring_is_a_fault(monkeypatch):
    """With the extras that do bring it; once, not again as a provider that does not run."""
    missing(monkeypatch, "libcublasLt.so.13", "libcublas.so.13", "libcuda.so.1")
    facts, faults = runtimes.check_libraries(with_gpu("13.0"))
    assert facts == (
        Fact("library", "CUDA of onnxruntime-gpu",
             "CUDA 13, missing: libcublasLt.so.13, libcublas.so.13", usable=False),
        Fact("library", "cuDNN of onnxruntime-gpu", "9, found", usable=True),
    )  # fmt: skip
    assert faults == (
        Fault(
            "onnxruntime-gpu is linked with libraries that are not found: libcublasLt.so.13, "
            "libcublas.so.13 (its extra [cuda] alone brings no cuBLAS)",
            "pip install --upgrade 'onnxruntime-gpu[cuda,cudnn]'",
        ),
    )
    assert runtimes.check_libraries(()) == (facts, ())


@pytest.mark.usefixtures("linked")
def test_a_missing_cudnn_is_named_too(monkeypatch):
    """The provider loads it late."""
    missing(monkeypatch, "libcudnn.so.9")
    facts, (fault,) = runtimes.check_libraries(with_gpu("13.0"))
    assert facts[1].value == "9, missing"
    assert not facts[1].usable
    assert fault.what.endswith("not found: libcudnn.so.9")


@pytest.mark.usefixtures("linked")
def test_libraries_that_are_all_there_are_no_fault(monkeypatch):
    """The versions are told."""
    missing(monkeypatch)
    facts, faults = runtimes.check_libraries(with_gpu("13.0"))
    assert faults == ()
    assert [fact.value for fact in facts] == ["CUDA 13, found", "9, found"]


@pytest.mark.usefixtures("gpu_wheel_without_cuda")
def test_one_cause_is_one_fault():
    """The missing library is named already; a driver that is too old comes on top."""
    lacking = Fact("library", "CUDA of onnxruntime-gpu", "CUDA 13, missing: x", usable=False)
    assert runtimes.check_onnxruntime((*with_gpu("13.0"), lacking))[1] == ()
    (fault,) = runtimes.check_onnxruntime((*with_gpu("12.4"), lacking))[1]
    assert "built for CUDA 13.0" in fault.what


def test_a_wheel_without_cuda_needs_no_libraries():
    """The one that these tests run with."""
    assert runtimes.check_libraries(with_gpu("13.0")) == ((), ())


@pytest.mark.usefixtures("linked")
def test_tensorrt_11_beside_a_provider_for_10_is_told_and_no_fault(monkeypatch):
    """Engines run without ONNX Runtime."""
    conflict = "linked with TensorRT 10 and TensorRT 11.4 is installed: pip install that"
    monkeypatch.setattr(runtimes, "tensorrt_conflict", lambda: conflict)
    monkeypatch.setattr(runtimes, "version_of", lambda *names: "11.4" * ("tensorrt" in names))
    missing(monkeypatch, "libnvinfer.so.10")
    facts, faults = runtimes.check_tensorrt(())
    assert faults == ()
    assert facts == (
        Fact("library", "TensorRT", "11.4", usable=True),
        Fact("library", "TensorRT of onnxruntime-gpu", conflict, usable=False),
    )


@pytest.mark.usefixtures("linked")
def test_a_tensorrt_that_came_without_a_wheel_is_found_by_the_loader(monkeypatch):
    """From a .deb, or in a container."""
    monkeypatch.setattr(runtimes, "tensorrt_conflict", lambda: "no TensorRT wheel is installed")
    missing(monkeypatch)
    *_, fact = runtimes.check_tensorrt(())[0]
    assert fact == Fact("library", "TensorRT of onnxruntime-gpu", "10, found", usable=True)
    monkeypatch.setattr(runtimes, "in_child", lambda probe, *names: {"error": "it crashed"})
    *_, fact = runtimes.check_tensorrt(())[0]
    assert not fact.usable


@pytest.mark.parametrize(
    ("answer", "shown", "faults"),
    [
        ({"devices": 1}, "plugin 0.5.0, active", 0),
        ({"devices": 0}, "plugin 0.5.0, not active: it finds no GPU that it supports", 0),
        ({"error": "libcuda.so.1: no such file"}, "plugin 0.5.0, not active: libcuda.so.1: no", 1),
    ],
)
def test_the_rtx_plugin_is_active_when_it_offers_a_gpu(monkeypatch, answer, shown, faults):
    """A GPU that it does not support is no fault of the machine."""
    monkeypatch.setattr(runtimes, "version_of", lambda *names: "0.5.0")
    monkeypatch.setattr(runtimes, "in_child", lambda probe: answer)
    (fact,), found = runtimes._check_rtx_plugin(with_gpu("13.0"))
    assert fact.value.startswith(shown)
    assert fact.usable == ("devices" in answer and answer["devices"] > 0)
    assert len(found) == faults
    assert runtimes._check_rtx_plugin(())[1] == ()

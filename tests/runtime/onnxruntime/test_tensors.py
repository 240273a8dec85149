"""Tensors on a GPU are waited for; producer and driver are fakes, since a real race needs a GPU."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from vit_export.errors import InputError, ProviderError
from vit_export.runtime.onnxruntime import tensors
from vit_export.runtime.onnxruntime.runner import OrtRunner
from vit_export.runtime.onnxruntime.tensors import written

X = np.ones((2, 3, 32, 32), np.float32)


class Producer:
    """A tensor that says it lies on a device, and notes the streams that it is asked for."""

    def __init__(self, kind: int, number: int, calls: list[Any]) -> None:
        self.device, self.calls = (kind, number), calls

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, **arguments: Any) -> Any:
        self.calls.append(("producer", arguments))
        return torch.from_numpy(X).__dlpack__()


class Driver:
    """NVIDIA's driver, which notes its calls with their numbers; functions in `codes` fail."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.codes: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        def function(*arguments: Any) -> int:
            numbers = [a if isinstance(a, int) else getattr(a, "value", None) for a in arguments]
            self.calls.append((name, [n for n in numbers if n is not None]))
            return self.codes.get(name, 0)

        return function


@pytest.fixture
def driver(monkeypatch) -> Driver:
    """In place of the real one."""
    fake = Driver()
    monkeypatch.setattr(tensors.ctypes, "CDLL", lambda name: fake)
    return fake


@pytest.fixture
def calls(driver) -> list[Any]:
    """What producer and driver are asked, in order."""
    return driver.calls


@pytest.mark.parametrize("kind", [2, 13])  # kDLCUDA, kDLCUDAManaged
def test_this_thread_waits_for_the_stream_that_the_producer_was_asked_for(kind, calls):
    """The legacy default stream, 1, of the GPU that the tensor is on."""
    written(Producer(kind, 3, calls))
    assert calls == [
        ("producer", {"stream": 1}),
        ("cuDevicePrimaryCtxRetain", [3]),
        ("cuCtxPushCurrent_v2", []),
        ("cuStreamSynchronize", [1]),
        ("cuCtxPopCurrent_v2", []),
        ("cuDevicePrimaryCtxRelease_v2", [3]),
    ]


def test_a_tensor_in_host_memory_needs_no_stream(calls):
    """Its producer accepts none (array API standard)."""
    written(Producer(1, 0, calls))
    assert calls == [("producer", {})]


def test_a_tensor_on_another_kind_of_device_is_refused(calls, tiny_export):
    """AMD's, 10 in DLPack: nobody would wait for it."""
    runner = OrtRunner(tiny_export.path, provider="cpu")
    with pytest.raises(InputError, match=r"DLPack's type 10; .*\nhint: pass `x\.cpu\(\)`"):
        runner.run({"pixel_values": Producer(10, 0, calls)})
    assert calls == []


def test_a_wait_that_fails_is_an_error_and_gives_the_context_back(driver, calls):
    """Never a run on values that may not be there."""
    driver.codes["cuStreamSynchronize"] = 700
    with pytest.raises(ProviderError, match="cuStreamSynchronize gave 700"):
        written(Producer(2, 0, calls))
    assert [name for name, _ in calls[-2:]] == [
        "cuCtxPopCurrent_v2",
        "cuDevicePrimaryCtxRelease_v2",
    ]


def test_a_run_waits_before_it_reads_its_inputs(calls, tiny_export):
    """Every run with tensors, on every provider."""
    runner = OrtRunner(tiny_export.path, provider="cpu")
    found = runner.run({"pixel_values": Producer(2, 1, calls)})["logits"]
    assert ("cuStreamSynchronize", [1]) in calls
    np.testing.assert_array_equal(found, runner.run({"pixel_values": X})["logits"])


def test_a_version_without_dlpack_is_an_error_that_names_the_version(monkeypatch, tiny_export):
    """As in onnxruntime 1.24.1; arrays still run."""
    runner = OrtRunner(tiny_export.path, provider="cpu")
    monkeypatch.delattr(onnxruntime.OrtValue, "from_dlpack")
    with pytest.raises(
        ProviderError, match=r"1\.26 or newer, .*\nhint: .*'onnxruntime>=1\.26'; or pass a numpy"
    ):
        runner.run({"pixel_values": torch.from_numpy(X)})
    assert runner.run({"pixel_values": X})["logits"].shape == (2, 10)


@pytest.mark.gpu
def test_the_driver_has_the_functions_under_these_names():
    driver = ctypes.CDLL(tensors.DRIVER_LIBRARY)
    names = ("cuDevicePrimaryCtxRetain", "cuStreamSynchronize", "cuDevicePrimaryCtxRelease_v2")
    assert all(getattr(driver, name) for name in (*names, "cuCtxPushCurrent_v2"))

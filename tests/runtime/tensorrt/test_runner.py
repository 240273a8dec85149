"""An engine's memory, threads and GPU, and the tensors it is handed, on a fake CUDA runtime."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest
import torch

from vit_export.errors import InputError, ProviderError
from vit_export.runtime.tensorrt.dlpack import CPU, CUDA, capsule_of
from vit_export.runtime.tensorrt.runner import TrtRunner
from vit_export.runtime.tensorrt.session import MAX_GRAPHS

X = np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32)
LOGITS = X.reshape(8, -1).sum(axis=1, keepdims=True) + np.arange(10, dtype=np.float32)


class OnGpu:
    """An array that says it lies on a GPU."""

    def __init__(self, array: np.ndarray, gpu: int = 0, kind: int = CUDA) -> None:
        self.array, self.device = array, (kind, gpu)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        return capsule_of(
            self.array.ctypes.data, self.array.shape, dtype=self.array.dtype.name,
            device=self.device, owner=self.array,
        )  # fmt: skip


def logits(batch: int = 8, dtype: str = "float32") -> np.ndarray:
    """Room for a result, and behind it for one that is written too far."""
    return np.zeros((32, 10), dtype)[:batch]


def test_arrays_and_tensors_on_the_gpu_give_the_same(trt_runner: TrtRunner) -> None:
    """Through pinned memory, and where they lie; a batch beyond the profile is cut."""
    np.testing.assert_allclose(trt_runner.run({"pixel_values": X})["logits"], LOGITS, rtol=1e-5)
    many = trt_runner.run({"pixel_values": np.concatenate([X] * 5)})["logits"]
    np.testing.assert_allclose(many, np.concatenate([LOGITS] * 5), rtol=1e-5)
    found = trt_runner.run_on_device({"pixel_values": OnGpu(X)})["logits"]
    np.testing.assert_allclose(found.numpy(), LOGITS, rtol=1e-5)


def test_a_result_is_written_where_it_was_asked_for(trt_runner: TrtRunner) -> None:
    """And handed back from there."""
    out = logits()
    found = trt_runner.run_on_device({"pixel_values": OnGpu(X)}, out={"logits": OnGpu(out)})
    assert found["logits"].address == out.ctypes.data
    np.testing.assert_allclose(out, LOGITS, rtol=1e-5)


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ({"logits": OnGpu(logits(1))}, r"'logits' is float32 \(1, 10\), expected .*\(8, 10\)"),
        ({"logits": OnGpu(logits(9))}, r"'logits' is float32 \(9, 10\), expected .*\(8, 10\)"),
        ({"logits": OnGpu(logits(dtype="float16"))}, r"is float16 \(8, 10\), expected"),
        ({"logits": OnGpu(logits(), gpu=1)}, "'logits' lies on GPU 1, .* loaded on GPU 0"),
        ({"logits": OnGpu(logits(), kind=CPU)}, "'logits' lies in host memory"),
        ({"logitz": OnGpu(logits())}, "unknown output 'logitz'; did you mean 'logits'"),
        ({"logits": logits()}, "'logits' is a ndarray; expected a CUDA tensor"),
    ],
)
def test_nothing_but_the_exact_room_for_a_result_is_written_to(
    trt_runner: TrtRunner, cuda: Any, out: dict[str, Any], reason: str
) -> None:
    """A smaller tensor would be written beyond its end; one of a misspelt name, never."""
    with pytest.raises(InputError, match=reason):
        trt_runner.run_on_device({"pixel_values": OnGpu(X)}, out=out)
    assert cuda.runs == []


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.from_numpy(X), "'pixel_values' lies in host memory, expected a CUDA tensor"),
        (OnGpu(X, gpu=1), "'pixel_values' lies on GPU 1, and the engine was loaded on GPU 0"),
        (X.tolist(), "'pixel_values' is a list; expected a CUDA tensor"),
        (OnGpu(X[0]), r"'pixel_values' is float32 \(3, 32, 32\), expected"),
        (OnGpu(X[:0]), "'pixel_values' is empty"),
        (OnGpu(np.concatenate([X] * 5)), "batch 40: the engine serves 1 to 32"),
    ],
    ids=["host", "other GPU", "list", "shape", "empty", "batch"],
)
def test_tensors_that_do_not_fit_are_our_errors(
    trt_runner: TrtRunner, cuda: Any, value: Any, reason: str
) -> None:
    """And not an assertion of their library, which is not asked for a tensor of elsewhere."""
    with pytest.raises(InputError, match=reason):
        trt_runner.run_on_device({"pixel_values": value})
    assert cuda.runs == []


def test_a_runner_that_is_gone_holds_nothing_on_the_gpu(trt_runner: TrtRunner, cuda: Any) -> None:
    """Also when nobody released it: buffers, pinned memory, streams and graphs."""
    runner = TrtRunner(trt_runner.path)
    for _ in range(3):
        runner.run({"pixel_values": X})
    result = runner.run_on_device({"pixel_values": OnGpu(X)})
    assert {kind for kind, _ in cuda.held.values()} == {"buffer", "pinned", "stream", "graph"}
    del runner, result
    gc.collect()
    assert cuda.held == {}


def test_a_released_runner_loads_again(trt_runner: TrtRunner, cuda: Any) -> None:
    """And holds nothing in between."""
    trt_runner.run({"pixel_values": X})
    trt_runner.release()
    assert cuda.held == {}
    np.testing.assert_allclose(trt_runner.run({"pixel_values": X})["logits"], LOGITS, rtol=1e-5)


def test_no_more_graphs_are_kept_than_are_said(trt_runner: TrtRunner, cuda: Any) -> None:
    """The one that was not used for longest is given back."""
    for batch in range(1, MAX_GRAPHS + 1):
        for _ in range(2):
            trt_runner.run({"pixel_values": X[:batch]})
    trt_runner.run({"pixel_values": np.concatenate([X, X])})
    kinds = [kind for kind, _ in cuda.held.values()]
    assert kinds.count("graph") == MAX_GRAPHS - 1


def test_a_thread_that_ended_holds_nothing(trt_runner: TrtRunner, cuda: Any) -> None:
    """Fifty short ones leave what one of them took: nothing, though none was released."""
    for _ in range(50):
        thread = threading.Thread(target=trt_runner.run, args=({"pixel_values": X},))
        thread.start()
        thread.join()
    assert cuda.held == {}


def test_a_release_reaches_the_sessions_of_threads_that_live(
    trt_runner: TrtRunner, cuda: Any
) -> None:
    """They take new ones with the next run."""
    ran, released, results = threading.Event(), threading.Event(), []

    def work() -> None:
        trt_runner.run({"pixel_values": X})
        ran.set()
        released.wait(10)
        results.append(trt_runner.run({"pixel_values": X})["logits"])

    thread = threading.Thread(target=work)
    thread.start()
    assert ran.wait(10)
    trt_runner.release()
    held = dict(cuda.held)
    released.set()
    thread.join()
    assert held == {}
    np.testing.assert_allclose(results[0], LOGITS, rtol=1e-5)


def test_a_gpu_without_room_is_an_error_and_nothing_stays(trt_runner: TrtRunner, cuda: Any) -> None:
    """Whichever allocation it is that fails."""
    for room in range(6):
        cuda.room = room
        with pytest.raises(ProviderError, match=r"cuda(Malloc|StreamCreate)\w* failed"):
            trt_runner.run({"pixel_values": X})
        assert cuda.held == {}
    cuda.room = 6
    trt_runner.run({"pixel_values": X})


def test_every_thread_works_on_the_gpu_that_the_engine_was_loaded_on(
    cuda: Any, trt_runner: TrtRunner
) -> None:
    """A fresh one begins with GPU 0; afterwards each has the one that it had."""
    cuda.cudaSetDevice(1)
    runner = TrtRunner(trt_runner.path)
    assert runner.ordinal == 1
    after: list[int] = []

    def work() -> None:
        runner.run({"pixel_values": X})
        result = runner.run_on_device({"pixel_values": OnGpu(X, gpu=1)})["logits"]
        assert result.__dlpack_device__() == (CUDA, 1)
        np.testing.assert_allclose(result.numpy(), LOGITS, rtol=1e-5)
        after.append(cuda.current)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    cuda.cudaSetDevice(0)
    runner.run({"pixel_values": X})
    assert cuda.runs == [1, 1, 1]
    assert after == [0]
    assert cuda.current == 0
    assert {gpu for _, gpu in cuda.held.values()} == {1}
    runner.release()
    assert cuda.held == {}

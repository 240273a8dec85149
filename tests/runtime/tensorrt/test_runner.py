"""Batches, memory, threads, GPUs and tensors of an engine, on a fake CUDA runtime."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest
import torch
from cuda.core import LEGACY_DEFAULT_STREAM
from cuda.core.utils import StridedMemoryView
from fake_cuda import SCRATCH, FakeBuffer, OnGpu, on_host
from hypothesis import given
from hypothesis import strategies as st

from vit_export.artifact.engine_sidecar import BatchRange
from vit_export.errors import InputError, ProviderError
from vit_export.runtime.tensorrt import runner
from vit_export.runtime.tensorrt.runner import CUDA, MAX_RUNS, TrtRunner
from vit_export.runtime.tensorrt.session import MAX_GRAPHS, Chunk, split

X = np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32)
LOGITS = X.reshape(8, -1).sum(axis=1, keepdims=True) + np.arange(10, dtype=np.float32)


def logits(batch: int = 8, dtype: str = "float32") -> np.ndarray:
    """Memory for a result, with more memory behind it."""
    return np.zeros((32, 10), dtype)[:batch]


def test_arrays_and_tensors_on_the_gpu_give_the_same(trt_runner: TrtRunner) -> None:
    """Through pinned memory and without a copy; a batch beyond the profile is split."""
    np.testing.assert_allclose(trt_runner.run({"pixel_values": X})["logits"], LOGITS, rtol=1e-5)
    many = trt_runner.run({"pixel_values": np.concatenate([X] * 5)})["logits"]
    np.testing.assert_allclose(many, np.concatenate([LOGITS] * 5), rtol=1e-5)
    found = trt_runner.run_on_device({"pixel_values": OnGpu(X)})["logits"]
    np.testing.assert_allclose(on_host(found), LOGITS, rtol=1e-5)


def test_a_result_is_written_to_the_given_tensor(trt_runner: TrtRunner) -> None:
    out = logits()
    read_only = X.copy()
    read_only.flags.writeable = False
    found = trt_runner.run_on_device({"pixel_values": OnGpu(read_only)}, out={"logits": OnGpu(out)})
    assert found["logits"].ptr == out.ctypes.data
    np.testing.assert_allclose(out, LOGITS, rtol=1e-5)


READ_ONLY = logits()
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ({"logits": OnGpu(logits(1))}, r"'logits' is float32 \(1, 10\); expected .*\(8, 10\)"),
        ({"logits": OnGpu(logits(9))}, r"'logits' is float32 \(9, 10\); expected .*\(8, 10\)"),
        ({"logits": OnGpu(logits(dtype="float16"))}, r"is float16 \(8, 10\); expected"),
        ({"logits": OnGpu(logits(), gpu=1)}, "'logits' is on GPU 1, .* loaded on GPU 0"),
        ({"logits": torch.from_numpy(logits())}, "'logits' is a Tensor in host memory"),
        ({"logitz": OnGpu(logits())}, "unknown output 'logitz'; did you mean 'logits'"),
        ({"logits": OnGpu(READ_ONLY)}, "'logits' is read-only"),
        ({"logits": logits()}, "'logits' is an ndarray in host memory; expected a CUDA tensor"),
    ],
)
def test_a_result_is_written_only_to_a_tensor_of_exactly_its_shape(
    trt_runner: TrtRunner, cuda: Any, out: dict[str, Any], reason: str
) -> None:
    """A smaller tensor would be written beyond its end."""
    with pytest.raises(InputError, match=reason):
        trt_runner.run_on_device({"pixel_values": OnGpu(X)}, out=out)
    assert cuda.runs == []


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.from_numpy(X), "'pixel_values' is a Tensor in host memory; expected a CUDA tensor"),
        (OnGpu(X, gpu=1), "'pixel_values' is on GPU 1, and the engine was loaded on GPU 0"),
        (X.tolist(), "'pixel_values' is a list in host memory; expected a CUDA tensor"),
        (OnGpu(X[0]), r"'pixel_values' is float32 \(3, 32, 32\); expected"),
        (OnGpu(X[:0]), "'pixel_values' is empty"),
        (OnGpu(np.concatenate([X] * 5)), "batch 40: the engine accepts batches of 1 to 32"),
    ],
    ids=["host", "other GPU", "list", "shape", "empty", "batch"],
)
def test_wrong_tensors_are_input_errors(
    trt_runner: TrtRunner, cuda: Any, value: Any, reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        trt_runner.run_on_device({"pixel_values": value})
    assert cuda.runs == []


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.from_numpy(X).transpose(2, 3), r"not contiguous\nhint: pass x.contiguous\(\)"),
        (torch.from_numpy(X)[:, :, ::2, ::2], r"expected"),
        (torch.from_numpy(X)[:1].expand(8, 3, 32, 32), "not contiguous"),
        (torch.from_numpy(X).clone().requires_grad_(), r"gradient.*\nhint: pass x.detach\(\)"),
        (torch.from_numpy(X).to(torch.bfloat16), r"'pixel_values' is bfloat16 \(8, 3, 32, 32\)"),
    ],
    ids=["transposed", "cut", "expanded", "gradient", "bfloat16"],
)
def test_tensors_that_would_need_a_copy_are_input_errors(
    trt_runner: TrtRunner, cuda: Any, value: Any, reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        trt_runner.run_on_device({"pixel_values": OnGpu(value)})
    assert cuda.runs == []


def test_a_dimension_of_one_may_have_any_stride() -> None:
    assert runner._is_contiguous(StridedMemoryView.from_dlpack(torch.zeros(6, 1).t(), -1))
    assert not runner._is_contiguous(StridedMemoryView.from_dlpack(torch.zeros(6, 2).t(), -1))


def test_other_libraries_import_a_result_without_a_copy_and_keep_its_memory(
    trt_runner: TrtRunner, cuda: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeBuffer, "is_device_accessible", False)  # torch has no GPU here
    monkeypatch.setattr(FakeBuffer, "is_host_accessible", True)
    results = trt_runner.run_on_device({"pixel_values": OnGpu(X)})
    taken = torch.from_dlpack(results["logits"])
    assert taken.data_ptr() == results["logits"].ptr
    del results
    trt_runner.release()
    gc.collect()
    np.testing.assert_allclose(taken.numpy(), LOGITS, rtol=1e-5)
    assert [kind for kind, _ in cuda.allocated.values()] == ["buffer"]
    del taken
    gc.collect()
    assert cuda.allocated == {}


def test_a_result_is_freed_after_the_work_on_the_default_stream(trt_runner: TrtRunner) -> None:
    """Torch may still read it there when it is dropped; the fake records the stream."""
    view = trt_runner.run_on_device({"pixel_values": OnGpu(X)})["logits"]
    assert view.exporting_obj.freed_on is LEGACY_DEFAULT_STREAM
    assert [b.freed_on for b in trt_runner._idle[0]._device.values()] == [None]  # scratch memory


def test_a_deleted_runner_frees_its_memory(trt_runner: TrtRunner, cuda: Any) -> None:
    """Buffers, pinned memory, streams and graphs, also without `release`."""
    runner = TrtRunner(trt_runner.path)
    for _ in range(3):
        runner.run({"pixel_values": X})
    result = runner.run_on_device({"pixel_values": OnGpu(X)})
    assert {kind for kind, _ in cuda.allocated.values()} == {"buffer", "pinned", "stream", "graph"}
    del runner, result
    gc.collect()
    assert cuda.allocated == {}


def test_a_released_runner_frees_its_memory_and_loads_again(
    trt_runner: TrtRunner, cuda: Any
) -> None:
    trt_runner.run({"pixel_values": X})
    trt_runner.release()
    assert cuda.allocated == {}
    np.testing.assert_allclose(trt_runner.run({"pixel_values": X})["logits"], LOGITS, rtol=1e-5)


def test_the_least_recently_used_graph_is_dropped(trt_runner: TrtRunner, cuda: Any) -> None:
    many = np.concatenate([X, X])
    trt_runner.run({"pixel_values": many})
    for batch in range(1, MAX_GRAPHS + 1):
        for _ in range(2):
            trt_runner.run({"pixel_values": X[:batch]})
    trt_runner.run({"pixel_values": many})
    kinds = [kind for kind, _ in cuda.allocated.values()]
    assert kinds.count("graph") == MAX_GRAPHS - 1


def test_threads_after_each_other_use_one_context(trt_runner: TrtRunner, cuda: Any) -> None:
    trt_runner.run({"pixel_values": X})
    in_use = sorted(cuda.sizes.values())
    for _ in range(20):
        thread = threading.Thread(target=trt_runner.run, args=({"pixel_values": X},))
        thread.start()
        thread.join()
    assert [kind for kind, _ in cuda.allocated.values()].count("stream") == 1
    assert sorted(cuda.sizes[handle] for handle in cuda.allocated if handle in cuda.sizes) == in_use


def test_forty_threads_do_not_hold_forty_copies(trt_runner: TrtRunner, cuda: Any) -> None:
    """`MAX_RUNS` of them run at once, each with memory of its own; the others wait."""
    trt_runner.run({"pixel_values": X})
    of_one_run = cuda.nbytes("buffer"), cuda.nbytes("pinned")
    cuda.enough_at_once = MAX_RUNS
    results: dict[int, np.ndarray] = {}

    def work(number: int) -> None:
        for _ in range(3):
            results[number] = trt_runner.run({"pixel_values": X + number})["logits"]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cuda.most_at_once == MAX_RUNS
    assert cuda.nbytes("buffer") == MAX_RUNS * of_one_run[0]
    assert cuda.nbytes("pinned") == MAX_RUNS * of_one_run[1]
    for number, logits in results.items():
        np.testing.assert_allclose(logits, LOGITS + number * X[0].size, rtol=1e-3)


def test_memory_has_the_size_of_the_batches_that_were_run(trt_runner: TrtRunner, cuda: Any) -> None:
    """Not of the largest batch of the profile, 32; a larger batch replaces the buffers."""
    of_one_image = 4 * (X[0].size + 10)
    for batch in (2, 1, 8, 4):
        for _ in range(3):
            logits = trt_runner.run({"pixel_values": X[:batch]})["logits"]
            np.testing.assert_allclose(logits, LOGITS[:batch], rtol=1e-5)
        largest = 2 if batch < 4 else 8
        assert cuda.nbytes("buffer") == largest * (of_one_image + SCRATCH)
        assert cuda.nbytes("pinned") == largest * of_one_image


def test_a_run_waits_for_the_streams_that_write_its_tensors(
    trt_runner: TrtRunner, cuda: Any
) -> None:
    """Their library gets the stream of the run, by DLPack: with and without results on the host."""
    x, out = OnGpu(X), OnGpu(logits())
    trt_runner.run_on_device({"pixel_values": x}, out={"logits": out})
    trt_runner.run({"pixel_values": x})
    ((stream, _),) = (item for item in cuda.allocated.items() if item[1][0] == "stream")
    assert x.waiting == [stream, stream]
    assert out.waiting == [stream]


def test_cuda_tensors_come_back_through_the_reused_pinned_memory(
    trt_runner: TrtRunner, cuda: Any
) -> None:
    for _ in range(3):
        found = trt_runner.run({"pixel_values": OnGpu(X)})["logits"]
        np.testing.assert_allclose(found, LOGITS, rtol=1e-5)
        assert cuda.nbytes("pinned") == LOGITS.nbytes


def test_a_wrong_tensor_keeps_the_context_and_a_failed_run_does_not(
    trt_runner: TrtRunner, cuda: Any
) -> None:
    trt_runner.run({"pixel_values": X})
    before = dict(cuda.allocated)
    with pytest.raises(InputError):
        trt_runner.run_on_device({"pixel_values": OnGpu(X[0])})
    assert cuda.allocated == before
    cuda.allocations_left = 0
    with pytest.raises(ProviderError):
        trt_runner.run({"pixel_values": np.concatenate([X, X])})
    assert cuda.allocated == {}


def test_a_release_frees_the_sessions_of_running_threads(trt_runner: TrtRunner, cuda: Any) -> None:
    """They get new ones with the next run."""
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
    after_release = dict(cuda.allocated)
    released.set()
    thread.join()
    assert after_release == {}
    np.testing.assert_allclose(results[0], LOGITS, rtol=1e-5)


def test_a_failed_allocation_frees_the_others(trt_runner: TrtRunner, cuda: Any) -> None:
    for allocations in range(6):
        cuda.allocations_left = allocations
        with pytest.raises(
            ProviderError,
            match="CUDA_ERROR_OUT_OF_MEMORY: no memory is left\nhint: see: vit-export doctor",
        ):
            trt_runner.run({"pixel_values": X})
        assert cuda.allocated == {}
    cuda.allocations_left = 6
    trt_runner.run({"pixel_values": X})


def test_every_thread_uses_the_gpu_that_the_engine_was_loaded_on(
    cuda: Any, trt_runner: TrtRunner
) -> None:
    """A new thread starts with none; after a run each thread has its previous GPU, or none."""
    runner = TrtRunner(trt_runner.path, device=1)
    assert runner.ordinal == 1
    assert cuda.current == 0
    cuda.current = 1
    assert TrtRunner(trt_runner.path).ordinal == 1
    after: list[int | None] = []

    def work() -> None:
        runner.run({"pixel_values": X})
        result = runner.run_on_device({"pixel_values": OnGpu(X, gpu=1)})["logits"]
        assert result.__dlpack_device__() == (CUDA, 1)
        np.testing.assert_allclose(on_host(result), LOGITS, rtol=1e-5)
        after.append(cuda.context)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    cuda.current = 0
    runner.run({"pixel_values": X})
    assert cuda.runs == [1, 1, 1]
    assert after == [None]
    assert cuda.current == 0
    assert {gpu for _, gpu in cuda.allocated.values()} == {1}
    runner.release()
    assert cuda.allocated == {}


ONE = [BatchRange(1, 8, 32)]
TWO = [BatchRange(1, 1, 1), BatchRange(8, 16, 32)]


def test_a_batch_that_a_profile_accepts_is_not_split() -> None:
    assert split(5, ONE) == [Chunk(0, 5, 5, 0)]
    assert split(32, ONE) == [Chunk(0, 32, 32, 0)]


def test_a_larger_batch_is_split_into_largest_chunks_and_a_rest() -> None:
    assert split(70, ONE) == [Chunk(0, 32, 32, 0), Chunk(32, 32, 32, 0), Chunk(64, 6, 6, 0)]


def test_the_profile_with_the_nearest_opt_is_used() -> None:
    profiles = [BatchRange(1, 1, 32), BatchRange(1, 16, 32)]
    assert split(2, profiles)[0].profile == 0
    assert split(12, profiles)[0].profile == 1


def test_a_batch_in_a_gap_is_padded_to_the_next_size() -> None:
    (chunk,) = split(3, TWO)
    assert chunk == Chunk(0, 3, 8, 1)
    assert split(33, TWO) == [Chunk(0, 32, 32, 1), Chunk(32, 1, 1, 0)]


@st.composite
def some_profiles(draw: st.DrawFn) -> list[BatchRange]:
    """One to three, of any sizes."""
    sizes = st.lists(st.integers(1, 40), min_size=3, max_size=3).map(sorted)
    return [BatchRange(*batch) for batch in draw(st.lists(sizes, min_size=1, max_size=3))]


@given(rows=st.integers(1, 200), profiles=some_profiles())
def test_every_row_runs_once_in_a_size_that_its_profile_accepts(
    rows: int, profiles: list[BatchRange]
) -> None:
    chunks = split(rows, profiles)
    covered = [row for c in chunks for row in range(c.start, c.start + c.rows)]
    assert covered == list(range(rows))
    for chunk in chunks:
        accepted = profiles[chunk.profile]
        assert accepted.min <= chunk.batch <= accepted.max
        assert chunk.rows <= chunk.batch
    assert all(chunk.batch == chunk.rows for chunk in chunks[:-1])

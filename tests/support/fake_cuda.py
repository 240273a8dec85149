"""`cuda-core` on host memory: two GPUs, which count allocations."""

from __future__ import annotations

import contextlib
import ctypes
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda.bindings import driver
from cuda.bindings.driver import CUresult
from cuda.core import Buffer
from cuda.core._utils.cuda_utils import CUDAError

from vit_export.runtime import engine_check
from vit_export.runtime.tensorrt import cuda, runner, session

SCRATCH = 1000  # bytes of scratch memory that the fake engine needs per image


class OnGpu:
    """A tensor of numpy or torch that claims to be on a GPU, and keeps which stream is to wait."""

    def __init__(self, tensor: Any, gpu: int = 0) -> None:
        self.tensor, self.gpu = tensor, gpu
        self.waiting: list[int | None] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.gpu

    def __dlpack__(self, *, stream: int | None = None, **options: Any) -> object:
        self.waiting.append(stream)
        return self.tensor.__dlpack__(**options)


def on_host(view: Any) -> np.ndarray:
    """Read a result (StridedMemoryView) that claims to be on a GPU."""
    memory = (ctypes.c_char * (math.prod(view.shape) * view.dtype.itemsize)).from_address(view.ptr)
    return np.frombuffer(memory, view.dtype).reshape(view.shape)


class FakeBuffer(Buffer):
    """Host memory that claims to be on a GPU."""

    is_host_accessible = is_managed = False
    is_device_accessible = True
    gpu = 0
    freed_on: object = None  # None: the stream that it was allocated on

    @property
    def device_id(self) -> int:
        return self.gpu

    @staticmethod
    def from_handle(address: int, nbytes: int) -> FakeBuffer:
        return FakeBuffer._init(address, nbytes)

    def set_deallocation_stream(self, stream: object) -> None:
        self.freed_on = stream

    def copy_from(self, source: Buffer, *, stream: FakeStream) -> None:
        assert self.size == source.size
        ctypes.memmove(int(self.handle), int(source.handle), self.size)


class Pinned(FakeBuffer):
    """Host memory that claims to be pinned."""

    is_host_accessible = True


class FakeStream:
    """Does everything at once."""

    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda
        self.handle = cuda.track("stream", self)

    def sync(self) -> None:
        assert self.handle in self._cuda.allocated
        assert self.handle not in self._cuda.captures, "cudaErrorStreamCaptureUnsupported"

    def create_graph_builder(self) -> FakeGraphBuilder:
        return FakeGraphBuilder(self._cuda, self.handle)


class FakeGraphBuilder:
    """Captures one run; fails as the source of `GraphBuilder` says, where the test wants it to."""

    def __init__(self, cuda: FakeCuda, stream: int) -> None:
        self._cuda, self._stream = cuda, stream

    def begin_building(self, mode: str) -> FakeGraphBuilder:
        assert mode == "thread_local"
        if self._cuda.capture_fails == "begin":
            raise CUDAError("CUDA_ERROR_ILLEGAL_STATE: begin")
        self._cuda.captures[self._stream] = lambda: None
        return self

    def end_building(self) -> FakeGraphBuilder:
        if self._cuda.capture_fails == "end":
            self._cuda.captures[self._stream] = None
        if self._cuda.captures[self._stream] is None:  # it still captures
            raise RuntimeError("Build process must now be ended.")
        self._captured = self._cuda.captures.pop(self._stream)
        return self

    def complete(self) -> FakeGraph:
        if self._cuda.capture_fails == "complete":
            raise CUDAError("CUDA_ERROR_OUT_OF_MEMORY: complete")
        return FakeGraph(self._cuda, self._captured)

    def close(self) -> None:
        if self._cuda.captures.pop(self._stream, self._stream) is None:
            raise CUDAError("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED")


class FakeGraph:
    """Replays a captured run."""

    def __init__(self, cuda: FakeCuda, captured: Callable[[], None]) -> None:
        self._captured = captured
        cuda.track("graph", self)

    def launch(self, stream: FakeStream) -> None:
        stream.sync()
        self._captured()


class FakeDevice:
    """One of two GPUs; `FakeCuda.device` is its constructor."""

    properties = SimpleNamespace(memory_pools_supported=True)

    def __init__(self, cuda: FakeCuda, ordinal: int) -> None:
        self._cuda, self.device_id = cuda, ordinal

    def set_current(self) -> None:
        self._cuda.current = self.device_id

    def create_stream(self) -> FakeStream:
        assert self._cuda.current == self.device_id
        return FakeStream(self._cuda)


class FakeCuda:
    """Two GPUs whose memory is the host's, in place of `cuda-core`.

    Attributes:
        allocated: Everything that was not freed: handle -> (kind, GPU).
        sizes: Bytes of each buffer: handle -> bytes.
        allocations_left: How many more allocations succeed.
        runs: The GPU of every run of the engine.
        batches: Their batch sizes.
        most_at_once: How many ran at the same time, at most.
        enough_at_once: How many that must be before any of them ends.
        captures: Streams that capture: handle -> the captured run; `None` after a failure.
        capture_fails: Where captures fail: "begin", "run", "end", "complete", or nowhere.
    """

    def __init__(self) -> None:
        self.allocated: dict[int, tuple[str, int]] = {}
        self.sizes: dict[int, int] = {}
        self.captures: dict[int, Callable[[], None] | None] = {}
        self.capture_fails = ""
        self.allocations_left = 1000
        self.runs: list[int] = []
        self.batches: list[int] = []
        self._at_once = self.most_at_once = 0
        self.enough_at_once = 1
        self._change = threading.Condition()
        self._of_thread = threading.local()

    def replace_cuda_core(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Use this in the modules of the runtime."""
        for module in (cuda, session, runner, engine_check):
            monkeypatch.setattr(module, "Device", self.device)
        monkeypatch.setattr("cuda.core.Device", self.device)
        monkeypatch.setattr(cuda, "driver", self)
        monkeypatch.setattr(cuda, "Buffer", FakeBuffer)
        monkeypatch.setattr(cuda, "DeviceMemoryResource", self.pool)
        monkeypatch.setattr(cuda, "LegacyPinnedMemoryResource", self.pinned)

    @property
    def context(self) -> int | None:
        """The GPU that this thread has chosen; `None` in a new thread."""
        return getattr(self._of_thread, "gpu", None)

    @property
    def current(self) -> int:
        """The GPU that this thread uses; 0 in a new thread."""
        return self.context or 0

    @current.setter
    def current(self, ordinal: int | None) -> None:
        self._of_thread.gpu = ordinal

    def cuCtxGetCurrent(self) -> tuple[CUresult, int | None]:  # noqa: N802  (CUDA's name)
        return CUresult.CUDA_SUCCESS, self.context

    def cuCtxSetCurrent(self, context: int | None) -> tuple[CUresult]:  # noqa: N802
        self.current = context
        return (CUresult.CUDA_SUCCESS,)

    CUmemPool_attribute, cuuint64_t = driver.CUmemPool_attribute, driver.cuuint64_t

    def cuMemPoolSetAttribute(self, *_: object) -> tuple[CUresult]:  # noqa: N802
        return (CUresult.CUDA_SUCCESS,)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Count a run while it lasts; it lasts until enough have run at once."""
        with self._change:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            self._change.notify_all()
            self._change.wait_for(lambda: self.most_at_once >= self.enough_at_once, timeout=60)
        time.sleep(0.002 * (self.enough_at_once > 1))  # so that one more would be seen
        yield
        with self._change:
            self._at_once -= 1

    def nbytes(self, kind: str) -> int:
        """Bytes in all buffers of a kind."""
        return sum(
            size
            for handle, size in self.sizes.items()
            if self.allocated.get(handle, ("",))[0] == kind
        )

    def track(self, kind: str, owner: object, handle: int = 0) -> int:
        """Count an object as allocated until it is deleted; return its handle."""
        if self.allocations_left == 0:
            raise CUDAError("CUDA_ERROR_OUT_OF_MEMORY: no memory is left")
        self.allocations_left -= 1
        handle = handle or id(owner)
        self.allocated[handle] = (kind, self.current)
        weakref.finalize(owner, self.allocated.pop, handle)
        return handle

    def device(self, ordinal: int | None = None) -> FakeDevice:
        """As `Device`: by default the GPU that this thread uses."""
        return FakeDevice(self, self.current if ordinal is None else ordinal)

    def _allocate(self, kind: type[FakeBuffer], name: str, nbytes: int) -> FakeBuffer:
        memory = ctypes.create_string_buffer(nbytes)
        buffer = kind._init(ctypes.addressof(memory), nbytes, owner=memory)
        buffer.gpu = self.current
        self.sizes[self.track(name, buffer, int(buffer.handle))] = nbytes
        return buffer

    def pool(self, device: FakeDevice, options: object) -> SimpleNamespace:
        """As `DeviceMemoryResource`."""
        assert self.current == device.device_id
        return SimpleNamespace(
            handle=None,
            allocate=lambda size, *, stream: self._allocate(FakeBuffer, "buffer", size),
        )

    def pinned(self) -> SimpleNamespace:
        """As `LegacyPinnedMemoryResource`."""
        return SimpleNamespace(allocate=lambda size: self._allocate(Pinned, "pinned", size))

"""`cuda-core` on host memory: two GPUs, which count allocations."""

from __future__ import annotations

import ctypes
import threading
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
from cuda.bindings.driver import CUresult
from cuda.core import Buffer
from cuda.core._utils.cuda_utils import CUDAError

from vit_export.runtime.tensorrt import cuda, runner, session


class OnGpu:
    """A tensor of numpy or torch that claims to be on a GPU."""

    def __init__(self, tensor: Any, gpu: int = 0) -> None:
        self.tensor, self.gpu = tensor, gpu

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.gpu

    def __dlpack__(self, **_: object) -> object:
        return self.tensor.__dlpack__()


class FakeBuffer(Buffer):
    """Host memory that claims to be on a GPU."""

    is_host_accessible = is_managed = False
    is_device_accessible = True
    gpu = 0

    @property
    def device_id(self) -> int:
        return self.gpu

    @staticmethod
    def from_handle(address: int, nbytes: int) -> FakeBuffer:
        return FakeBuffer._init(address, nbytes)

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

    def create_graph_builder(self) -> SimpleNamespace:
        builder = SimpleNamespace(complete=lambda: FakeGraph(self._cuda))
        builder.begin_building = lambda mode: builder
        builder.end_building = lambda: builder
        return builder


class FakeGraph:
    """A graph that replays nothing."""

    def __init__(self, cuda: FakeCuda) -> None:
        cuda.track("graph", self)

    def launch(self, stream: FakeStream) -> None:
        stream.sync()


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
        allocations_left: How many more allocations succeed.
        runs: The GPU of every run of the engine.
    """

    def __init__(self) -> None:
        self.allocated: dict[int, tuple[str, int]] = {}
        self.allocations_left = 1000
        self.runs: list[int] = []
        self._of_thread = threading.local()

    def replace_cuda_core(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Use this in the modules of the runtime."""
        for module in (cuda, session, runner):
            monkeypatch.setattr(module, "Device", self.device)
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
        self.track(name, buffer, int(buffer.handle))
        return buffer

    def pool(self, device: FakeDevice, options: object) -> SimpleNamespace:
        """As `DeviceMemoryResource`."""
        assert self.current == device.device_id
        return SimpleNamespace(
            allocate=lambda size, *, stream: self._allocate(FakeBuffer, "buffer", size)
        )

    def pinned(self) -> SimpleNamespace:
        """As `LegacyPinnedMemoryResource`."""
        return SimpleNamespace(allocate=lambda size: self._allocate(Pinned, "pinned", size))

"""A fake CUDA runtime on host memory that counts allocations, and a fake engine that adds."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda.bindings import runtime as cudart

from vit_export.artifact.engine_sidecar import Gpu, Sidecar, sidecar_path
from vit_export.runtime.tensorrt import cuda as device
from vit_export.runtime.tensorrt import runner as trt
from vit_export.runtime.tensorrt.backend import Backend
from vit_export.runtime.tensorrt.plan import Plan
from vit_export.runtime.tensorrt.runner import TrtRunner

SUCCESS = cudart.cudaError_t.cudaSuccess
OUT_OF_MEMORY = cudart.cudaError_t.cudaErrorMemoryAllocation
MIB = 2**20


class FakeCuda:
    """Two GPUs whose memory is the host's.

    Attributes:
        allocated: Everything that was not freed: handle -> (kind, GPU).
        allocations_left: How many more allocations succeed.
        runs: The GPU of every run of the engine.
    """

    def __init__(self) -> None:
        self.allocated: dict[int, tuple[str, int]] = {}
        self.allocations_left = 1000
        self.runs: list[int] = []
        self._memory: dict[int, Any] = {}
        self._of_thread = threading.local()

    def __getattr__(self, name: str) -> Any:
        return getattr(cudart, name)  # enumerations

    @property
    def current(self) -> int:
        """The GPU of this thread; 0 in a new thread."""
        return getattr(self._of_thread, "gpu", 0)

    def _make(self, kind: str, nbytes: int) -> tuple[Any, int | None]:
        if self.allocations_left == 0:
            return OUT_OF_MEMORY, None
        self.allocations_left -= 1
        memory = ctypes.create_string_buffer(max(nbytes, 1))
        address = ctypes.addressof(memory)
        self._memory[address], self.allocated[address] = memory, (kind, self.current)
        return SUCCESS, address

    def _free(self, kind: str, handle: int) -> tuple[Any]:
        assert self.allocated.pop(handle) == (kind, self.current)
        del self._memory[handle]
        return (SUCCESS,)

    def cudaGetDevice(self) -> tuple[Any, int]:  # noqa: N802  (CUDA's name, as the others)
        return SUCCESS, self.current

    def cudaSetDevice(self, ordinal: int) -> tuple[Any]:  # noqa: N802
        self._of_thread.gpu = ordinal
        return (SUCCESS,)

    def cudaMalloc(self, nbytes: int) -> tuple[Any, int | None]:  # noqa: N802
        return self._make("buffer", nbytes)

    def cudaFree(self, address: int) -> tuple[Any]:  # noqa: N802
        return self._free("buffer", address)

    def cudaMallocHost(self, nbytes: int) -> tuple[Any, int | None]:  # noqa: N802
        return self._make("pinned", nbytes)

    def cudaFreeHost(self, address: int) -> tuple[Any]:  # noqa: N802
        return self._free("pinned", address)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, int | None]:  # noqa: N802
        return self._make("stream", 1)

    def cudaStreamDestroy(self, stream: int) -> tuple[Any]:  # noqa: N802
        return self._free("stream", stream)

    def cudaMemcpyAsync(self, to: int, source: int, nbytes: int, *_: Any) -> tuple[Any]:  # noqa: N802
        ctypes.memmove(to, source, nbytes)
        return (SUCCESS,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any]:  # noqa: N802
        return (SUCCESS,)

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> tuple[Any]:  # noqa: N802
        return (SUCCESS,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, int]:  # noqa: N802
        return SUCCESS, 1

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[Any, int | None]:  # noqa: N802
        return self._make("graph", 1)

    def cudaGraphDestroy(self, graph: int) -> tuple[Any]:  # noqa: N802
        return (SUCCESS,)

    def cudaGraphExecDestroy(self, executable: int) -> tuple[Any]:  # noqa: N802
        return self._free("graph", executable)

    def cudaGraphLaunch(self, executable: int, stream: int) -> tuple[Any]:  # noqa: N802
        return (SUCCESS,)


class FakeContext:
    """Computes as logit i of an image the sum of its pixels, plus i."""

    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda
        self._shape: tuple[int, ...] = ()
        self._addresses: dict[str, int] = {}

    def set_device_memory(self, address: int, nbytes: int) -> None:
        assert self._cuda.allocated[address] == ("buffer", self._cuda.current)

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        return profile == 0 and stream in self._cuda.allocated

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shape = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self._cuda.runs.append(self._cuda.current)
        batch = self._shape[0]
        x = _floats(self._addresses["pixel_values"], self._shape)
        _floats(self._addresses["logits"], (batch, 10))[:] = x.reshape(batch, -1).sum(
            axis=1, keepdims=True
        ) + np.arange(10)
        return True


def _floats(address: int, shape: tuple[int, ...]) -> np.ndarray:
    memory = (ctypes.c_float * int(np.prod(shape))).from_address(address)
    return np.ctypeslib.as_array(memory).reshape(shape)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """The fake in place of NVIDIA's runtime; checks that each test frees what it allocates."""
    fake = FakeCuda()
    monkeypatch.setattr(device, "cudart", fake)
    gc.freeze()  # existing objects need no search
    yield fake
    gc.collect()
    gc.unfreeze()
    assert fake.allocated == {}


@pytest.fixture
def engine_path(
    cuda: FakeCuda,
    make_sidecar: Callable[..., Sidecar],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """An engine of the tiny model for batches of 1 to 32 on the fake runtime."""
    native = SimpleNamespace(
        device_memory_size_v2=16, create_execution_context=lambda strategy: FakeContext(cuda)
    )
    enums = SimpleNamespace(ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED=1))
    backend = Backend(name="tensorrt", trt=enums, version="11.4.0.106",
                      logger=SimpleNamespace(collectors=[]))  # fmt: skip

    def load(backend: Backend, path: Path, sidecar: Sidecar, *, allow_host_code: bool) -> Plan:
        return Plan(backend=backend, runtime=None, engine=native, sidecar=sidecar)

    gpu = Gpu(name="NVIDIA L4", compute_capability="8.9", driver="13.0")
    monkeypatch.setattr(trt, "current_gpu", lambda ordinal: gpu)
    monkeypatch.setattr(trt, "load_backend", lambda name: backend)
    monkeypatch.setattr(trt, "check_plan_file", lambda path, sidecar: None)
    monkeypatch.setattr(Plan, "load", load)
    path = tmp_path / "tiny.engine"
    make_sidecar().write(sidecar_path(path))
    return path


@pytest.fixture
def trt_runner(engine_path: Path) -> Iterator[TrtRunner]:
    """That engine on GPU 0."""
    runner = TrtRunner(engine_path)
    yield runner
    runner.release()

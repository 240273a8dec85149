"""A fake engine that adds, on a fake CUDA."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fake_cuda import FakeCuda

from vit_export.artifact.engine_sidecar import Gpu, Sidecar, sidecar_path
from vit_export.runtime.tensorrt import runner as trt
from vit_export.runtime.tensorrt.backend import Backend
from vit_export.runtime.tensorrt.plan import Plan
from vit_export.runtime.tensorrt.runner import TrtRunner


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
    """The fake in place of `cuda-core`; checks that each test frees what it allocates."""
    fake = FakeCuda()
    fake.replace_cuda_core(monkeypatch)
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

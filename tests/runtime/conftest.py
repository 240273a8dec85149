"""A fake engine that adds, on a fake CUDA."""

from __future__ import annotations

import ctypes
import functools
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_cuda import SCRATCH, FakeCuda

from vit_export.artifact.engine_sidecar import Gpu, Sidecar, file_sha256, sidecar_path
from vit_export.runtime import engine_check
from vit_export.runtime.tensorrt import runner as trt
from vit_export.runtime.tensorrt.backend import Backend
from vit_export.runtime.tensorrt.plan import Plan
from vit_export.runtime.tensorrt.runner import TrtRunner


class FakeRuntimeCache:
    """Kernels of TensorRT-RTX: the batch sizes that ran; a file of others is rejected."""

    def __init__(self) -> None:
        self.batches: set[int] = set()

    def serialize(self) -> bytes:
        return b"kernels " + bytes(sorted(self.batches))

    def deserialize(self, data: bytes) -> bool:
        self.batches |= set(data.removeprefix(b"kernels "))
        return data.startswith(b"kernels ")


class FakeEngine:
    """Makes contexts; the arguments of `create_execution_context` are those of both backends."""

    device_memory_size_v2 = 32 * SCRATCH
    accepts_cache = True

    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda

    def create_runtime_config(self) -> SimpleNamespace:
        config = SimpleNamespace(create_runtime_cache=FakeRuntimeCache, cache=FakeRuntimeCache())

        def set_runtime_cache(cache: FakeRuntimeCache) -> bool:
            if self.accepts_cache:
                config.cache = cache
            return self.accepts_cache

        config.set_runtime_cache = set_runtime_cache
        return config

    def create_execution_context(self, config: Any) -> FakeContext:
        return FakeContext(self._cuda, getattr(config, "cache", FakeRuntimeCache()))


class FakeContext:
    """Computes as logit i of an image the sum of its pixels, plus i."""

    def __init__(self, cuda: FakeCuda, kernels: FakeRuntimeCache) -> None:
        self._cuda, self._kernels = cuda, kernels
        self._shape: tuple[int, ...] = ()
        self._addresses: dict[str, int] = {}

    def update_device_memory_size_for_shapes(self) -> int:
        return SCRATCH * self._shape[0]

    def set_device_memory(self, address: int, nbytes: int) -> None:
        assert self._cuda.allocated[address] == ("buffer", self._cuda.current)
        assert self._cuda.sizes[address] >= nbytes >= SCRATCH * self._shape[0]

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        return stream in self._cuda.allocated

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shape = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        compute = functools.partial(_compute, self._shape, dict(self._addresses))
        if stream in self._cuda.captures:
            assert not gc.isenabled()
            if self._cuda.capture_fails == "run":
                self._cuda.captures[stream] = None
                return False
            self._cuda.captures[stream] = compute
            return True
        self._cuda.runs.append(self._cuda.current)
        self._cuda.batches.append(self._shape[0])
        self._kernels.batches.add(self._shape[0])
        with self._cuda.running():
            compute()
        return True


def _compute(shape: tuple[int, ...], addresses: dict[str, int]) -> None:
    x, batch = _floats(addresses["pixel_values"], shape), shape[0]
    sums = x.reshape(batch, -1).sum(axis=1, keepdims=True)
    _floats(addresses["logits"], (batch, 10))[:] = sums + np.arange(10)


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
def make_engine(
    cuda: FakeCuda,
    make_sidecar: Callable[..., Sidecar],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Path]:
    """Writes an engine of the tiny model for the fake runtime; fields are those of a sidecar."""
    enums = SimpleNamespace(
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED=1),
        CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE=1),
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda _: FakeEngine(cuda)),
    )
    gpu = Gpu(name="NVIDIA L4", compute_capability="8.9", driver="13.0")
    monkeypatch.setattr(trt, "current_gpu", lambda ordinal: gpu)
    for module in (trt, engine_check):
        monkeypatch.setattr(
            module,
            "load_backend",
            lambda name: Backend(name=name, trt=enums, version="11.4.0.106",
                                 logger=SimpleNamespace(collectors=[])),
        )  # fmt: skip
    monkeypatch.setattr(Plan, "_check_signature", lambda self, path: None)

    def make(**fields: Any) -> Path:
        path = tmp_path / "tiny.engine"
        path.write_bytes(b"abc")
        sidecar = make_sidecar(plan_sha256=file_sha256(path), **fields)
        sidecar.write(sidecar_path(path))
        return path

    return make


@pytest.fixture
def engine_path(make_engine: Callable[..., Path]) -> Path:
    """An engine of the tiny model for batches of 1 to 32 on the fake runtime."""
    return make_engine()


@pytest.fixture
def trt_runner(engine_path: Path) -> Iterator[TrtRunner]:
    """That engine on GPU 0."""
    runner = TrtRunner(engine_path)
    yield runner
    runner.release()

"""The CUDA runtime, as far as an engine needs it: GPUs, memory, streams and graphs.

By NVIDIA's `cuda-bindings`; every call is checked, and a failure says which call it was.
"""

from __future__ import annotations

import contextlib
import ctypes
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
from cuda.bindings import runtime as cudart
from numpy.typing import NDArray

from vit_export.artifact.engine_sidecar import Gpu
from vit_export.errors import ProviderError

OLDEST_CUDA = 12  # that the extras of this package accept
_HOST_TO_DEVICE = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
_DEVICE_TO_HOST = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost


def call(name: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime.

    Returns:
        What it gives beside its status: nothing, a value, or a tuple of values.

    Raises:
        ProviderError: It failed.
    """
    status, *values = getattr(cudart, name)(*arguments)
    if status != cudart.cudaError_t.cudaSuccess:
        _, text = cudart.cudaGetErrorString(status)
        raise ProviderError(
            f"CUDA: {name} failed: {text.decode(errors='replace')} ({status.name}); "
            "see: vit-export doctor"
        )
    return values[0] if len(values) == 1 else tuple(values)


def current_gpu() -> Gpu | None:
    """The GPU that this thread works on; `None` on a machine without one.

    Raises:
        ProviderError: There is one, but it does not answer, or its driver is too old.
    """
    status, _ = cudart.cudaGetDeviceCount()
    if status == cudart.cudaError_t.cudaErrorInsufficientDriver:
        _check_old_driver()
        return None
    if status == cudart.cudaError_t.cudaErrorNoDevice or call("cudaGetDeviceCount") == 0:
        return None
    properties = call("cudaGetDeviceProperties", current_ordinal())
    return Gpu(
        name=properties.name.decode().rstrip("\0"),
        compute_capability=f"{properties.major}.{properties.minor}",
        driver=_words(call("cudaDriverGetVersion")),
    )


def _check_old_driver() -> None:
    """Raise ProviderError where there is a driver: CUDA has one status for none and for too old."""
    driver, runtime = call("cudaDriverGetVersion"), call("cudaRuntimeGetVersion")
    if not driver:
        return
    major = driver // 1000
    older = f", or take packages for CUDA {major}: pip install 'cuda-bindings<{major + 1}'"
    raise ProviderError(
        f"the NVIDIA driver here supports CUDA {_words(driver)} at most, and cuda-bindings brings "
        f"CUDA {_words(runtime)}; update the driver{older if major >= OLDEST_CUDA else ''}; "
        "see: vit-export doctor"
    )


def _words(version: int) -> str:
    """A version of CUDA, e.g. `"13.0"` of 13000."""
    return f"{version // 1000}.{version % 1000 // 10}"


def current_ordinal() -> int:
    """Number of the GPU that this thread works on; every thread begins with 0."""
    return int(call("cudaGetDevice"))


@contextlib.contextmanager
def working_on(ordinal: int) -> Iterator[None]:
    """Let this thread work on a GPU while the context lasts, then on the one that it had."""
    before = current_ordinal()
    if before == ordinal:
        yield
        return
    call("cudaSetDevice", ordinal)
    try:
        yield
    finally:
        call("cudaSetDevice", before)


def _given_back_with(owner: object, name: str, handle: Any) -> None:
    """Have CUDA take something back when nobody refers to its owner any more.

    On its own GPU: the thread in which that happens may work on another one. What is left when
    the process ends is the driver's to take.
    """
    finalizer = weakref.finalize(owner, _give_back, current_ordinal(), name, handle)
    finalizer.atexit = False


def _give_back(ordinal: int, name: str, handle: Any) -> None:
    with working_on(ordinal):
        call(name, handle)


class DeviceBuffer:
    """Memory on the GPU, freed with this object."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.address = int(call("cudaMalloc", nbytes))
        _given_back_with(self, "cudaFree", self.address)


class PinnedArray:
    """An array in host memory that the GPU copies from and to without the CPU.

    Attributes:
        address: Where it lies.
        array: numpy array over the memory, which is freed with this object: copy what must last.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        nbytes = int(np.prod(shape)) * dtype.itemsize
        self.address = int(call("cudaMallocHost", nbytes))
        _given_back_with(self, "cudaFreeHost", self.address)
        self.array = _host_array(self.address, nbytes).view(dtype).reshape(shape)


def _host_array(address: int, nbytes: int) -> NDArray[np.uint8]:
    """Bytes at an address as an array, without a copy."""
    memory = (ctypes.c_uint8 * nbytes).from_address(address)
    return np.ctypeslib.as_array(memory)


class Stream:
    """Work that the GPU does in order; given back with this object.

    Attributes:
        handle: The stream as a number, as TensorRT takes it.
    """

    def __init__(self) -> None:
        non_blocking = cudart.cudaStreamNonBlocking
        self._stream = call("cudaStreamCreateWithFlags", non_blocking)
        _given_back_with(self, "cudaStreamDestroy", self._stream)
        self.handle = int(self._stream)

    def to_device(self, address: int, host: int, nbytes: int) -> None:
        """Copy from (pinned) host memory."""
        call("cudaMemcpyAsync", address, host, nbytes, _HOST_TO_DEVICE, self._stream)

    def to_host(self, host: int, address: int, nbytes: int) -> None:
        """Copy to (pinned) host memory."""
        call("cudaMemcpyAsync", host, address, nbytes, _DEVICE_TO_HOST, self._stream)

    def synchronize(self) -> None:
        """Wait until all is done."""
        call("cudaStreamSynchronize", self._stream)

    def begin_capture(self) -> None:
        """Record what follows instead of doing it."""
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call("cudaStreamBeginCapture", self._stream, mode)

    def end_capture(self) -> Graph:
        """What was recorded, ready to be launched."""
        graph = call("cudaStreamEndCapture", self._stream)
        try:
            return Graph(call("cudaGraphInstantiate", graph, 0))
        finally:
            call("cudaGraphDestroy", graph)

    def launch(self, graph: Graph) -> None:
        """Do what was recorded."""
        call("cudaGraphLaunch", graph.executable, self._stream)


class Graph:
    """Recorded work of a stream; given back with this object."""

    def __init__(self, executable: Any) -> None:
        self.executable = executable
        _given_back_with(self, "cudaGraphExecDestroy", executable)

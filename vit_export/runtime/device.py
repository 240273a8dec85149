"""The CUDA runtime, as far as an engine needs it: GPUs, memory, streams and graphs.

By NVIDIA's `cuda-bindings`; every call is checked, and a failure says which call it was.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from cuda.bindings import runtime as cudart
from numpy.typing import NDArray

from vit_export.enginefile import Gpu
from vit_export.errors import ProviderError

NO_GPU = ("cudaErrorInsufficientDriver", "cudaErrorNoDevice")
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
        ProviderError: There is one, but it does not answer.
    """
    status, count = cudart.cudaGetDeviceCount()
    if status.name in NO_GPU or (status.name == "cudaSuccess" and count == 0):
        return None
    ordinal = call("cudaGetDevice")
    properties = call("cudaGetDeviceProperties", ordinal)
    version = call("cudaDriverGetVersion")  # 13000 is CUDA 13.0
    return Gpu(
        name=properties.name.decode().rstrip("\0"),
        compute_capability=f"{properties.major}.{properties.minor}",
        driver=f"{version // 1000}.{version % 1000 // 10}",
    )


class DeviceBuffer:
    """Memory on the GPU, freed with this object."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.address = int(call("cudaMalloc", nbytes))

    def free(self) -> None:
        """Give the memory back."""
        if self.address:
            call("cudaFree", self.address)
            self.address = 0


class PinnedArray:
    """An array in host memory that the GPU copies from and to without the CPU.

    Attributes:
        array: numpy array over the memory.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        nbytes = int(np.prod(shape)) * dtype.itemsize
        self._address = int(call("cudaMallocHost", nbytes))
        self.array = _host_array(self._address, nbytes).view(dtype).reshape(shape)

    @property
    def address(self) -> int:
        """Where it lies."""
        return self._address

    def free(self) -> None:
        """Give the memory back; the array must not be used afterwards."""
        if self._address:
            call("cudaFreeHost", self._address)
            self._address = 0


def _host_array(address: int, nbytes: int) -> NDArray[np.uint8]:
    """Bytes at an address as an array, without a copy."""
    memory = (ctypes.c_uint8 * nbytes).from_address(address)
    return np.ctypeslib.as_array(memory)


class Stream:
    """Work that the GPU does in order.

    Attributes:
        handle: The stream as a number, as TensorRT takes it.
    """

    def __init__(self) -> None:
        non_blocking = cudart.cudaStreamNonBlocking
        self._stream = call("cudaStreamCreateWithFlags", non_blocking)
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

    def destroy(self) -> None:
        """Give the stream back."""
        call("cudaStreamDestroy", self._stream)


class Graph:
    """Recorded work of a stream."""

    def __init__(self, executable: Any) -> None:
        self.executable = executable

    def destroy(self) -> None:
        """Give it back."""
        call("cudaGraphExecDestroy", self.executable)

"""GPUs, memory, streams and graphs of the CUDA runtime, as far as an engine needs them.

By NVIDIA's `cuda-bindings`; every call is checked, and an error names the call that failed.
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
from vit_export.errors import ProviderError, UsageError

OLDEST_CUDA = 12  # that the extras of this package accept
_HOST_TO_DEVICE = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
_DEVICE_TO_HOST = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost


def call(name: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime; return its results besides the status.

    Raises:
        ProviderError: The call failed.
    """
    status, *values = getattr(cudart, name)(*arguments)
    if status != cudart.cudaError_t.cudaSuccess:
        _, text = cudart.cudaGetErrorString(status)
        raise ProviderError(
            f"CUDA: {name} failed: {text.decode(errors='replace')} ({status.name})",
            hint="see: vit-export doctor",
        )
    return values[0] if len(values) == 1 else tuple(values)


def current_gpu(ordinal: int | None = None) -> Gpu | None:
    """Return a GPU, by default the one that this thread uses; `None` on a machine without one.

    Raises:
        ProviderError: A GPU does not answer, or its driver is too old.
        UsageError: There are GPUs, but not so many.
    """
    status, count = cudart.cudaGetDeviceCount()
    if status == cudart.cudaError_t.cudaErrorInsufficientDriver:
        _check_driver_not_too_old()
        return None
    if status == cudart.cudaError_t.cudaErrorNoDevice or call("cudaGetDeviceCount") == 0:
        return None
    if ordinal is not None and not 0 <= ordinal < count:
        raise UsageError(f"device={ordinal}: this machine has the GPUs 0 to {count - 1}")
    properties = call("cudaGetDeviceProperties", current_ordinal() if ordinal is None else ordinal)
    return Gpu(
        name=properties.name.decode().rstrip("\0"),
        compute_capability=f"{properties.major}.{properties.minor}",
        driver=_version_text(call("cudaDriverGetVersion")),
    )


def _check_driver_not_too_old() -> None:
    """Raise ProviderError where there is a driver: CUDA's status is the same without one."""
    driver, runtime = call("cudaDriverGetVersion"), call("cudaRuntimeGetVersion")
    if not driver:
        return
    major = driver // 1000
    older = f", or install packages for CUDA {major}: pip install 'cuda-bindings<{major + 1}'"
    raise ProviderError(
        f"the NVIDIA driver here supports CUDA {_version_text(driver)} at most, and cuda-bindings "
        f"needs CUDA {_version_text(runtime)}",
        hint=f"update the driver{older if major >= OLDEST_CUDA else ''}; see: vit-export doctor",
    )


def _version_text(version: int) -> str:
    """Return a CUDA version as text: `"13.0"` for 13000."""
    return f"{version // 1000}.{version % 1000 // 10}"


def current_ordinal() -> int:
    """Return the number of the GPU that this thread uses; 0 in a new thread."""
    return int(call("cudaGetDevice"))


@contextlib.contextmanager
def working_on(ordinal: int) -> Iterator[None]:
    """Use a GPU in this thread inside the context, and the previous one afterwards."""
    before = current_ordinal()
    if before == ordinal:
        yield
        return
    call("cudaSetDevice", ordinal)
    try:
        yield
    finally:
        call("cudaSetDevice", before)


def _free_with(owner: object, name: str, handle: Any) -> None:
    """Free a CUDA object by a function of the runtime when its Python owner is deleted.

    On the GPU that it was made on: the thread that deletes the owner may use another one. At the
    end of the process the driver frees what is left.
    """
    finalizer = weakref.finalize(owner, _free, current_ordinal(), name, handle)
    finalizer.atexit = False


def _free(ordinal: int, name: str, handle: Any) -> None:
    with working_on(ordinal):
        call(name, handle)


class DeviceBuffer:
    """Memory on the GPU, freed with this object."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.address = int(call("cudaMalloc", nbytes))
        _free_with(self, "cudaFree", self.address)


class PinnedArray:
    """A numpy array in pinned host memory, which the GPU reads and writes without the CPU.

    The memory is freed with this object: copy what must last.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        nbytes = int(np.prod(shape)) * dtype.itemsize
        self.address = int(call("cudaMallocHost", nbytes))
        _free_with(self, "cudaFreeHost", self.address)
        memory = (ctypes.c_uint8 * nbytes).from_address(self.address)
        self.array: NDArray[Any] = np.frombuffer(memoryview(memory), dtype).reshape(shape)


class Stream:
    """Work that the GPU does in order; destroyed with this object."""

    def __init__(self) -> None:
        self._stream = call("cudaStreamCreateWithFlags", cudart.cudaStreamNonBlocking)
        _free_with(self, "cudaStreamDestroy", self._stream)
        self.handle = int(self._stream)  # as TensorRT expects it

    def to_device(self, address: int, host: int, nbytes: int) -> None:
        """Copy from (pinned) host memory to the GPU."""
        call("cudaMemcpyAsync", address, host, nbytes, _HOST_TO_DEVICE, self._stream)

    def to_host(self, host: int, address: int, nbytes: int) -> None:
        """Copy from the GPU to (pinned) host memory."""
        call("cudaMemcpyAsync", host, address, nbytes, _DEVICE_TO_HOST, self._stream)

    def synchronize(self) -> None:
        """Wait until all work is done."""
        call("cudaStreamSynchronize", self._stream)

    def begin_capture(self) -> None:
        """Record the work that follows instead of doing it."""
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call("cudaStreamBeginCapture", self._stream, mode)

    def end_capture(self) -> Graph:
        """Return the recorded work, ready to launch."""
        graph = call("cudaStreamEndCapture", self._stream)
        try:
            return Graph(call("cudaGraphInstantiate", graph, 0))
        finally:
            call("cudaGraphDestroy", graph)

    def launch(self, graph: Graph) -> None:
        """Do recorded work."""
        call("cudaGraphLaunch", graph.executable, self._stream)


class Graph:
    """Recorded work of a stream; destroyed with this object."""

    def __init__(self, executable: Any) -> None:
        self.executable = executable
        _free_with(self, "cudaGraphExecDestroy", executable)

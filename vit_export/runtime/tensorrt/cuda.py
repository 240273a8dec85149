"""GPUs, memory and copies for an engine, by NVIDIA's `cuda-core`.

`cuda-bindings` does what `cuda-core` cannot: count GPUs where there may be no driver, tell a driver
that is too old, give a thread back the context, or none, that it had, and set how much freed memory
a new pool keeps (`DeviceMemoryResource.attributes.release_threshold` is read-only).
"""

import contextlib
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
from cuda.bindings import driver
from cuda.bindings import runtime as cudart
from cuda.core import (
    Buffer,
    Device,
    DeviceMemoryResource,
    DeviceMemoryResourceOptions,
    LegacyPinnedMemoryResource,
)

# cuda-core has no public name for its errors
from cuda.core._utils.cuda_utils import CUDAError, handle_return
from numpy.typing import NDArray

from vit_export.artifact.engine_sidecar import Gpu
from vit_export.errors import ProviderError, UsageError

OLDEST_CUDA = 12  # that the extras of this package accept


@contextlib.contextmanager
def named_failures() -> Iterator[None]:
    """Raise ProviderError for an error of CUDA."""
    try:
        yield
    except CUDAError as error:
        raise ProviderError(f"CUDA: {error}", hint="see: vit-export doctor") from error


@named_failures()
def current_gpu(ordinal: int | None = None) -> Gpu | None:
    """Return a GPU, by default the one that this thread uses; `None` on a machine without one."""
    status, count = cudart.cudaGetDeviceCount()
    if status == cudart.cudaError_t.cudaErrorInsufficientDriver:  # also where there is no driver
        if supported := handle_return(cudart.cudaDriverGetVersion()):
            raise _too_old(supported, handle_return(cudart.cudaRuntimeGetVersion()))
        return None
    if status == cudart.cudaError_t.cudaErrorNoDevice or handle_return((status, count)) == 0:
        return None
    if ordinal is not None and not 0 <= ordinal < count:
        raise UsageError(f"device={ordinal}: this machine has the GPUs 0 to {count - 1}")
    device = Device(ordinal)
    return Gpu(
        name=device.name,
        compute_capability="{}.{}".format(*device.compute_capability),
        driver=_version_text(handle_return(cudart.cudaDriverGetVersion())),
    )


def _too_old(supported: int, needed: int) -> ProviderError:
    major = supported // 1000
    older = f", or install packages for CUDA {major}: pip install 'cuda-bindings<{major + 1}'"
    return ProviderError(
        f"the NVIDIA driver here supports CUDA {_version_text(supported)} at most, and "
        f"cuda-bindings needs CUDA {_version_text(needed)}",
        hint=f"update the driver{older if major >= OLDEST_CUDA else ''}; see: vit-export doctor",
    )


def _version_text(version: int) -> str:
    """Return a CUDA version as text: `"13.0"` for 13000."""
    return f"{version // 1000}.{version % 1000 // 10}"


@contextlib.contextmanager
def working_on(ordinal: int | None) -> Iterator[int]:
    """Use a GPU in this thread inside the context, and what the thread used before afterwards.

    Yields its number; `None` stands for the GPU that this thread uses already.
    """
    with named_failures():
        device = Device(ordinal)
        before = handle_return(driver.cuCtxGetCurrent())
        device.set_current()
        try:
            yield device.device_id
        finally:
            handle_return(driver.cuCtxSetCurrent(before))


def device_memory() -> Any:
    """Return a stream-ordered pool of memory on the current GPU.

    It keeps freed memory for the next allocation; it gives all of it back to the driver when the
    pool and the memory from it are deleted.
    """
    device = Device()
    if not device.properties.memory_pools_supported:
        return device.memory_resource
    pool = DeviceMemoryResource(device, DeviceMemoryResourceOptions())
    threshold = driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
    handle_return(
        driver.cuMemPoolSetAttribute(pool.handle, threshold, driver.cuuint64_t(2**64 - 1))
    )
    return pool


def pinned_array(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return an array in pinned host memory, which the GPU reads and writes without the CPU."""
    memory = LegacyPinnedMemoryResource().allocate(math.prod(shape) * dtype.itemsize)
    data = (int(memory.handle), False)  # not read-only, unlike `np.from_dlpack` before numpy 2.3
    interface = {"version": 3, "shape": shape, "typestr": dtype.str, "data": data}
    return np.asarray(SimpleNamespace(__array_interface__=interface, memory=memory))


def copy(target: int, source: int, nbytes: int, stream: Any) -> None:
    """Copy between addresses on the GPU and in pinned host memory, when the stream gets there."""
    Buffer.from_handle(target, nbytes).copy_from(Buffer.from_handle(source, nbytes), stream=stream)

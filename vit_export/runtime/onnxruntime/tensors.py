"""Take inputs of any library as ONNX Runtime's tensors, after their producer has written them."""

import ctypes
from typing import Any

import numpy as np
import onnxruntime as ort

from vit_export.artifact.manifest import TensorSpec
from vit_export.errors import InputError, ProviderError, with_article
from vit_export.host.nvidia import DRIVER_LIBRARY
from vit_export.runtime.checks import check_array
from vit_export.runtime.onnxruntime.providers import check_version, first_line

# DLDeviceType in dlpack.h
CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13
LEGACY_STREAM = 1  # CUDA's legacy default stream, as DLPack and cuda.h number it


def ort_value(spec: TensorSpec, value: Any, device: tuple[str, int]) -> ort.OrtValue:
    """Return an input as an `OrtValue`: an array is copied to the device, a tensor is not."""
    if isinstance(value, np.ndarray):
        check_array(spec, value)
        return ort.OrtValue.ortvalue_from_numpy(value, *device)
    if not hasattr(value, "__dlpack__"):
        raise InputError(
            f"input {spec.name!r} is {with_article(type(value).__name__)}; expected a numpy array "
            f"or a tensor that supports DLPack ({spec})"
        )
    if (kind := value.__dlpack_device__()[0]) not in (CPU, CUDA, CUDA_HOST, CUDA_MANAGED):
        raise InputError(
            f"input {spec.name!r} lies on a device of DLPack's type {int(kind)}; expected host "
            "memory or an NVIDIA GPU",
            hint="pass `x.cpu()`",
        )
    check_version(
        ort.OrtValue, "from_dlpack", "1.26", f"input {spec.name!r} as a tensor",
        instead="pass a numpy array, `x.cpu().numpy()`",
    )  # fmt: skip
    try:
        tensor = ort.OrtValue.from_dlpack(written(value))
    except (BufferError, RuntimeError) as error:
        raise InputError(
            f"input {spec.name!r} cannot be used without a copy ({first_line(error)})",
            hint="pass `x.detach().contiguous()`",
        ) from error
    dtype = tensor.data_type().removeprefix("tensor(").removesuffix(")")
    dtype = {"float": "float32", "double": "float64"}.get(dtype, dtype)
    if dtype != spec.dtype or not spec.fits(tensor.shape()):
        raise InputError(f"input {spec.name!r} is {dtype} {tuple(tensor.shape())}, expected {spec}")
    return tensor


def written(tensor: Any) -> Any:
    """Return the DLPack capsule of a tensor, once the kernels that write it have finished.

    ONNX Runtime's streams wait for no other stream, and its `synchronize_inputs` waits for nothing
    with provider "tensorrt" (microsoft/onnxruntime, issue 32673). So the producer orders its work
    before the legacy default stream (Python array API standard, `__dlpack__`: stream 1), and this
    thread waits for that stream.
    """
    kind, number = tensor.__dlpack_device__()
    if kind not in (CUDA, CUDA_MANAGED):
        return tensor.__dlpack__()
    capsule = tensor.__dlpack__(stream=LEGACY_STREAM)
    wait_for_legacy_stream(number)
    return capsule


def wait_for_legacy_stream(gpu: int) -> None:
    """Wait until a GPU has done all work before this point of its legacy default stream."""
    driver = ctypes.CDLL(DRIVER_LIBRARY)  # loaded already: the tensor is on a GPU

    def call(name: str, *arguments: Any) -> None:
        if code := getattr(driver, name)(*arguments):
            raise ProviderError(f"waiting for the producer of an input failed: {name} gave {code}")

    context = ctypes.c_void_p()
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), gpu)
    try:
        call("cuCtxPushCurrent_v2", context)
        try:
            call("cuStreamSynchronize", ctypes.c_void_p(LEGACY_STREAM))
        finally:
            call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
    finally:
        call("cuDevicePrimaryCtxRelease_v2", gpu)

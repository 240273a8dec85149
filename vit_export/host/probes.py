"""Probes that run in child processes because they can crash: NVIDIA's driver, ONNX Runtime.

A provider counts as active when it has computed something: `onnxruntime.get_available_providers()`
lists what a wheel was compiled with, and a session falls back to the CPU without an error.
Each probe imports what it tries, so the imports are inside the functions.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import io
import sys
from collections.abc import Callable
from typing import Any

from vit_export.host.child_process import Answer, Worker, WorkerError, answer_orders
from vit_export.host.nvidia import RTX_PLUGIN, load_tensorrt

TIMEOUT_S = 120  # TensorRT builds an engine even for the smallest model
DRIVER_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
CUDA_ERROR_NO_DEVICE = 100  # CUresult
COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute
NVIDIA_PROVIDERS = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
# An .onnx file: y = x @ x for x of shape (2, 2), IR version 8, opset 13.
MATMUL_MODEL = bytes.fromhex(
    "08083a440a110a01780a017812017922064d61744d756c120570726f62655a130a0178120e0a0c08"
    "0112080a0208020a02080262130a0179120e0a0c080112080a0208020a0208024202100d"
)


def run_probe(probe: Callable[..., Answer], *arguments: str) -> Answer:
    """Call a probe of this module in a child process.

    Returns:
        What the probe returned, or `{"error": why}`.
    """
    with Worker(__name__) as worker:
        try:
            answer = worker.ask(probe.__name__, timeout_s=TIMEOUT_S, arguments=arguments)
        except WorkerError as error:
            answer = {"error": error.message}
        missing = [line for line in worker.log() if "cannot open shared object file" in line]
    if "error" in answer and missing:  # ONNX Runtime logs the cause and raises no error
        answer["error"] = missing[0].rpartition("error: ")[2]
    return answer


def main() -> None:
    """Answer one probe after the other; the child of `run_probe`."""
    probes = (probe_nvidia, probe_onnxruntime, probe_provider, probe_rtx_plugin, probe_libraries)
    answer_orders({probe.__name__: _handler(probe) for probe in probes})


def _handler(probe: Callable[..., Answer]) -> Callable[[Answer], Answer]:
    return lambda order: probe(*order["arguments"])


def probe_nvidia() -> Answer:
    """Read the driver's version and its GPUs (CUDA Driver API, cuda.h).

    Returns:
        `{"cuda": "13.0", "gpus": [description, ...]}`, `{"absent": why}` or `{"error": why}`.
    """
    try:
        driver = ctypes.CDLL(DRIVER_LIBRARY)
    except OSError as error:
        return {"absent": str(error)}
    status = driver.cuInit(0)
    if status:
        text = ctypes.c_char_p()
        driver.cuGetErrorString(status, ctypes.byref(text))
        kind = "absent" if status == CUDA_ERROR_NO_DEVICE else "error"
        return {kind: f"cuInit: {(text.value or b'unknown').decode()} ({status})"}
    version, count = ctypes.c_int(), ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))  # 13000 is CUDA 13.0
    driver.cuDeviceGetCount(ctypes.byref(count))
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return {"cuda": cuda, "gpus": [_describe_gpu(driver, n) for n in range(count.value)]}


def _describe_gpu(driver: ctypes.CDLL, ordinal: int) -> str:
    device, major, minor, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGet(ctypes.byref(device), ordinal)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceGetAttribute(ctypes.byref(major), COMPUTE_CAPABILITY_MAJOR, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), COMPUTE_CAPABILITY_MINOR, device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    capability = f"compute capability {major.value}.{minor.value}"
    return f"{name.value.decode()}, {capability}, {memory.value / 2**30:.0f} GiB"


def probe_onnxruntime() -> Answer:
    """List the providers that the installed wheel was compiled with.

    Returns:
        `{"providers": [name, ...], "cuda": "13.0"}`; cuda is empty in a wheel without CUDA.
    """
    import onnxruntime

    providers = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" not in providers:
        return {"providers": providers, "cuda": ""}
    from onnxruntime.capi import build_and_package_info

    return {"providers": providers, "cuda": build_and_package_info.cuda_version}


def probe_provider(provider: str) -> Answer:
    """Multiply two matrices on an execution provider.

    Returns:
        `{}`, or `{"error": why}` where that failed.
    """
    import numpy as np
    import onnxruntime

    if provider in NVIDIA_PROVIDERS:
        _preload_wheels(onnxruntime)
    session = onnxruntime.InferenceSession(MATMUL_MODEL, providers=[provider])
    if session.get_providers()[0] != provider:
        return {"error": f"ONNX Runtime fell back to {session.get_providers()[0]}"}
    square = np.array([[1, 2], [3, 4]], dtype=np.float32)
    (product,) = session.run(None, {"x": square})
    return {} if np.allclose(product, square @ square) else {"error": f"x @ x gives {product}"}


def probe_rtx_plugin() -> Answer:
    """Register the TensorRT-RTX plugin with ONNX Runtime and count the GPUs that it offers.

    Returns:
        `{"devices": 1}`, `{"absent": why}` or `{"error": why}`.
    """
    import onnxruntime

    if importlib.util.find_spec(RTX_PLUGIN) is None:
        return {"absent": "not installed"}
    plugin = importlib.import_module(RTX_PLUGIN)
    name = plugin.get_ep_name()
    onnxruntime.register_execution_provider_library(name, plugin.get_library_path())
    return {"devices": sum(device.ep_name == name for device in onnxruntime.get_ep_devices())}


def probe_libraries(*names: str) -> Answer:
    """Load shared libraries by name, as ONNX Runtime does after it has loaded those of wheels.

    Returns:
        `{"missing": [name, ...]}`.
    """
    import onnxruntime

    _preload_wheels(onnxruntime)
    return {"missing": [name for name in names if not _loads(name)]}


def _preload_wheels(onnxruntime: Any) -> None:
    """Load the libraries of the CUDA, cuDNN and TensorRT wheels."""
    if hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            onnxruntime.preload_dlls()
    load_tensorrt()


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True

"""Probes that run in child processes because they can crash: NVIDIA's driver, ONNX Runtime.

A provider counts as active when it has computed something: `onnxruntime.get_available_providers()`
lists what a wheel was compiled with, and a session falls back to the CPU without an error.
Each probe imports what it tries, so the imports are inside the functions.
"""

import contextlib
import ctypes
import importlib
import io
from collections.abc import Callable
from typing import Any

from vit_export.host.child_process import Answer, Worker, WorkerError, answer_orders
from vit_export.host.nvidia import (
    DRIVER_LIBRARY,
    PROVIDER_LIBRARIES,
    RTX_PLUGIN,
    load_tensorrt,
)

TIMEOUT_S = 120  # TensorRT builds an engine even for the smallest model
CUDA_ERROR_NO_DEVICE = 100  # CUresult
COMPUTE_CAPABILITY = (75, 76)  # CUdevice_attribute: major, minor
# An .onnx file: y = x @ x for x of shape (2, 2), IR version 8, opset 13.
MATMUL_MODEL = bytes.fromhex(
    "08083a440a110a01780a017812017922064d61744d756c120570726f62655a130a0178120e0a0c08"
    "0112080a0208020a02080262130a0179120e0a0c080112080a0208020a0208024202100d"
)


def run_probe(probe: Callable[..., Answer], *arguments: str) -> Answer:
    """Call a probe of this module in a child process; where that fails, return `{"error": why}`."""
    with Worker(__name__) as worker:
        try:
            answer = worker.ask("probe", timeout_s=TIMEOUT_S, name=probe.__name__, args=arguments)
        except WorkerError as error:
            answer = {"error": error.message}
        missing = [line for line in worker.log() if "cannot open shared object file" in line]
    if "error" in answer and missing:  # ONNX Runtime logs the cause and raises no error
        answer["error"] = missing[0].rpartition("error: ")[2]
    return answer


def main() -> None:
    """Answer one probe after the other; the child of `run_probe`."""
    answer_orders({"probe": lambda name, args: globals()[name](*args)})


def probe_nvidia() -> Answer:
    """Read the driver's version and its GPUs (CUDA Driver API, cuda.h).

    Returns `{"cuda": "13.0", "gpus": [description, ...]}`, `{"absent": why}` or `{"error": why}`.
    """
    try:
        driver = ctypes.CDLL(DRIVER_LIBRARY)
    except OSError as error:
        return {"absent": str(error)}
    if status := driver.cuInit(0):
        text = ctypes.c_char_p()
        driver.cuGetErrorString(status, ctypes.byref(text))
        kind = "absent" if status == CUDA_ERROR_NO_DEVICE else "error"
        return {kind: f"cuInit: {(text.value or b'unknown').decode()} ({status})"}
    version = _read(driver.cuDriverGetVersion)  # 13000 is CUDA 13.0
    gpus = []
    for ordinal in range(_read(driver.cuDeviceGetCount)):
        device, name = _read(driver.cuDeviceGet, ordinal), ctypes.create_string_buffer(256)
        driver.cuDeviceGetName(name, len(name), device)
        major, minor = (_read(driver.cuDeviceGetAttribute, n, device) for n in COMPUTE_CAPABILITY)
        gib = _read(driver.cuDeviceTotalMem_v2, device, kind=ctypes.c_size_t) / 2**30
        gpus.append(f"{name.value.decode()}, compute capability {major}.{minor}, {gib:.0f} GiB")
    return {"cuda": f"{version // 1000}.{version % 1000 // 10}", "gpus": gpus}


def _read(function: Any, *arguments: int, kind: Any = ctypes.c_int) -> int:
    """Return the number that a function of the driver writes to its first argument."""
    number = kind()
    function(ctypes.byref(number), *arguments)
    return int(number.value)


def probe_onnxruntime() -> Answer:
    """List the providers that the installed wheel was compiled with: `{"providers": [...]}`."""
    import onnxruntime

    return {"providers": onnxruntime.get_available_providers()}


def probe_provider(provider: str) -> Answer:
    """Multiply two matrices on a provider; return `{}`, or `{"error": why}`."""
    import numpy as np
    import onnxruntime

    if provider in PROVIDER_LIBRARIES:
        _preload_wheels(onnxruntime)
    session = onnxruntime.InferenceSession(MATMUL_MODEL, providers=[provider])
    if session.get_providers()[0] != provider:
        return {"error": f"ONNX Runtime fell back to {session.get_providers()[0]}"}
    square = np.array([[1, 2], [3, 4]], dtype=np.float32)
    (product,) = session.run(None, {"x": square})
    return {} if np.allclose(product, square @ square) else {"error": f"x @ x gives {product}"}


def probe_rtx_plugin() -> Answer:
    """Register the TensorRT-RTX plugin and count the GPUs that it offers: `{"devices": 1}`."""
    import onnxruntime

    plugin = importlib.import_module(RTX_PLUGIN)
    name = plugin.get_ep_name()
    onnxruntime.register_execution_provider_library(name, plugin.get_library_path())
    return {"devices": sum(device.ep_name == name for device in onnxruntime.get_ep_devices())}


def probe_libraries(*names: str) -> Answer:
    """Load shared libraries by name, after those of wheels: `{"missing": [name, ...]}`."""
    import onnxruntime

    _preload_wheels(onnxruntime)
    return {"missing": [name for name in names if not _loads(name)]}


def _loads(library: str) -> bool:
    with contextlib.suppress(OSError):
        return bool(ctypes.CDLL(library))
    return False


def _preload_wheels(onnxruntime: Any) -> None:
    """Load the libraries of the CUDA, cuDNN and TensorRT wheels."""
    if hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            onnxruntime.preload_dlls()
    load_tensorrt()

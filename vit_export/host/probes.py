"""Trying what may crash: the NVIDIA driver, and ONNX Runtime's execution providers.

Each probe runs in a fresh interpreter, so that a native crash, a hang or a line on standard
error stays there; that is why imports lie in the probes. A provider counts as active when it
has computed something: `onnxruntime.get_available_providers()` names what a wheel was
compiled with, and a session falls back to the CPU without an error.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from vit_export.artifact.onnx_wire import integer, message
from vit_export.host.nvidia import RTX_PLUGIN, load_tensorrt

TIMEOUT_S = 120  # TensorRT builds an engine even for the smallest model
FLOAT = 1  # onnx.TensorProto.FLOAT
DRIVER_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
CUDA_ERROR_NO_DEVICE = 100  # CUresult
COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute
NVIDIA_PROVIDERS = ("CUDAExecutionProvider", "TensorrtExecutionProvider")

Answer = dict[str, Any]


def in_child(function: Callable[..., Answer], *arguments: str) -> Answer:
    """Call a probe in a fresh interpreter, where a crash or a hang harms nobody.

    Returns:
        What the probe returned, or `{"error": why}`.
    """
    code = (
        "import json, sys; from vit_export.host import probes; "
        f"answer = probes.{function.__name__}(*sys.argv[1:]); print('\\n' + json.dumps(answer))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", code, *arguments]
    try:
        child = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {TIMEOUT_S} s"}
    log = child.stderr.strip().splitlines() or ["it said nothing"]
    answer: Answer = {"error": f"{log[-1]} (exit status {child.returncode})"}
    if child.returncode == 0:
        answer = json.loads(child.stdout.splitlines()[-1])
    missing = [line for line in log if "cannot open shared object file" in line]
    if "error" in answer and missing:  # the cause, which ONNX Runtime logs and does not raise
        answer["error"] = missing[0].rpartition("error: ")[2]
    return answer


def probe_nvidia() -> Answer:
    """Ask the driver's library (CUDA Driver API, cuda.h) for its version and its GPUs.

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
    """Providers that the installed wheel was compiled with, and the CUDA that it needs.

    Returns:
        `{"providers": [name, ...], "cuda": "13.0"}`; cuda is empty in a wheel without it.
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
        `{}` when it did, `{"error": why}` when it did not.
    """
    import numpy as np
    import onnxruntime

    if provider in NVIDIA_PROVIDERS:
        onnxruntime.preload_dlls()  # CUDA and cuDNN of the wheel's extras; prints what it misses
        load_tensorrt()
    session = onnxruntime.InferenceSession(_matmul_model(), providers=[provider])
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
    """Load shared libraries as ONNX Runtime would: by name, after those of the wheels.

    Returns:
        `{"missing": [name, ...]}`.
    """
    import onnxruntime

    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    load_tensorrt()
    return {"missing": [name for name in names if not _loads(name)]}


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _matmul_model() -> bytes:
    """The smallest useful .onnx file, y = x @ x for x of shape (2, 2); numbers as in onnx.proto."""
    dimension = message(1, integer(1, 2))
    tensor_type = message(1, integer(1, FLOAT) + message(2, dimension + dimension))
    x, y = (message(1, name) + message(2, tensor_type) for name in (b"x", b"y"))
    node = message(1, b"x") + message(1, b"x") + message(2, b"y") + message(4, b"MatMul")
    graph = message(1, node) + message(2, b"probe") + message(11, x) + message(12, y)
    ir_version, opset_13 = integer(1, 8), integer(2, 13)
    return ir_version + message(7, graph) + message(8, opset_13)

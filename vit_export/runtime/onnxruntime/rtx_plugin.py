"""NVIDIA's TensorRT-RTX provider, which comes as a plugin in a wheel of its own.

`onnxruntime-ep-nv-tensorrt-rtx` works with either wheel of ONNX Runtime from 1.24 on. Importing
it loads its libraries, so that happens only when the provider is asked for. Registering was run
without a GPU (refused: no driver; and with an empty driver: no device); a session was not.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from typing import Any

import onnxruntime as ort

from vit_export.errors import ProviderError
from vit_export.host.nvidia import RTX_INSTALL, RTX_PLUGIN
from vit_export.runtime.onnxruntime.providers import BACKEND_ERRORS, PROVIDERS, first_line

EP_NAME = PROVIDERS["tensorrt-rtx"]
SUPPORTED = "compute capability 8.6, 8.9, or 12.0 and newer"  # tensorrt_rtx_provider_options.h
_registering = threading.Lock()


def rtx_devices() -> list[Any]:
    """GPUs that the plugin offers, after registering it once in this process.

    Returns:
        `OrtEpDevice`s, at least one.

    Raises:
        ProviderError: The plugin is not installed, cannot be loaded, or finds no GPU.
    """
    if not hasattr(ort, "register_execution_provider_library"):
        raise ProviderError(
            f"provider 'tensorrt-rtx': onnxruntime {ort.__version__} takes no plugins; install "
            "1.24 or newer: pip install --upgrade 'onnxruntime>=1.24'"
        )
    if importlib.util.find_spec(RTX_PLUGIN) is None:
        raise ProviderError(
            f"provider 'tensorrt-rtx': its plugin for ONNX Runtime is not installed: {RTX_INSTALL}"
        )
    with _registering:
        if not _devices():
            _register()
    found = _devices()
    if not found:
        raise ProviderError(
            "provider 'tensorrt-rtx': the plugin is loaded and finds no GPU that it supports "
            f"({SUPPORTED}); see: vit-export doctor"
        )
    return found


def _devices() -> list[Any]:
    return [device for device in ort.get_ep_devices() if device.ep_name == EP_NAME]


def _register() -> None:
    plugin = importlib.import_module(RTX_PLUGIN)
    try:
        ort.register_execution_provider_library(EP_NAME, plugin.get_library_path())
    except BACKEND_ERRORS as error:
        if "already registered" in str(error):
            return
        reason = first_line(error).rpartition("with error: ")[2]
        raise ProviderError(
            f"provider 'tensorrt-rtx': its plugin cannot be loaded ({reason}); it needs an NVIDIA "
            "driver for CUDA 13; see: vit-export doctor"
        ) from error

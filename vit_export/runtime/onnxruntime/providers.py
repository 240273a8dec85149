"""ONNX Runtime's execution providers: which are usable, which really run, and why one fails.

TensorRT-RTX is a plugin in a wheel of its own, for either wheel of ONNX Runtime from 1.24 on.
Importing it loads its libraries, so that happens only when the provider is requested.
"""

import contextlib
import functools
import importlib
import importlib.util
import io
import re
import threading
from collections.abc import Iterator
from typing import Any

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as native

from vit_export.errors import ProviderError
from vit_export.host.nvidia import (
    RTX_INSTALL,
    RTX_PLUGIN,
    load_tensorrt,
    onnxruntime_wheels,
    tensorrt_conflict,
)
from vit_export.host.probes import probe_provider, run_probe

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
}
PLUGINS = ("tensorrt-rtx",)  # providers that are not part of a wheel of ONNX Runtime
AUTO = ("cuda", "cpu")  # best first; TensorRT builds an engine for minutes, so it is left out
ON_DEVICE = ("cuda", "tensorrt")  # a run's tensors are on the GPU, with others in host memory
MAY_RUN_ON_CPU = frozenset({"Shape", "Size"})  # their results are always in host memory
GPU_INSTALL = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
BACKEND_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    *(e for e in vars(native).values() if isinstance(e, type) and issubclass(e, Exception)),
)
FATAL_ONLY = 4  # ONNX Runtime's logging severity
RTX_GPUS = "compute capability 8.6, 8.9, or 12.0 and newer"  # tensorrt_rtx_provider_options.h
_registering = threading.Lock()
_SOURCE_LINE = re.compile(r"^/\S+\.(?:cc|h):\d+ .*?\) (?=[A-Z])")
installed_wheels = functools.cache(onnxruntime_wheels)  # reads the metadata of all packages


def worth_trying(provider: str) -> bool:
    """Whether the installed wheel should have the provider; one for CPUs has no CUDA."""
    return PROVIDERS[provider] in ort.get_available_providers() or len(installed_wheels()) > 1


def check_wheel_usable(provider: str) -> None:
    """Raise ProviderError if the installed onnxruntime cannot have the provider."""
    wheels, available = installed_wheels(), ort.get_available_providers()
    install = f"pip uninstall -y {' '.join(wheels)} && {GPU_INSTALL}" if wheels else GPU_INSTALL
    if len(wheels) > 1:
        raise ProviderError(
            f"provider {provider!r}: {' and '.join(wheels)} are both installed and overwrite each "
            "other",
            hint=f"keep one: {install}",
        )
    if provider in PLUGINS:
        return
    if PROVIDERS[provider] not in available:
        raise ProviderError(
            f"provider {provider!r}: the installed onnxruntime {ort.__version__} is built "
            f"without {PROVIDERS[provider]} (it has: {', '.join(available)})",
            hint=f"install the GPU build: {install}",
        )
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what is missing; `cause` reports it
        ort.preload_dlls()  # the CUDA libraries of wheels
    if provider == "tensorrt":
        load_tensorrt()


def check_no_fallback(session: ort.InferenceSession, provider: str, name: str) -> None:
    """Raise ProviderError unless the session runs every node on the provider."""
    wanted = PROVIDERS[provider]
    if session.get_providers()[0] != wanted:
        raise ProviderError(
            f"provider {provider!r} was requested, but ONNX Runtime fell back to "
            f"{session.get_providers()[0]}{cause(provider)}",
            hint="`vit-export doctor` shows what is missing; --provider cpu runs on the CPU",
        )
    if provider == "cpu":
        return
    strays = [
        f"{node.name} ({node.op_type})"
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != wanted
        for node in part.get_nodes()
        if node.op_type not in MAY_RUN_ON_CPU
    ]
    if strays:
        shown = ", ".join(strays[:5]) + (", ..." if len(strays) > 5 else "")
        raise ProviderError(
            f"{name}: {len(strays)} of its nodes have no kernel on {provider!r} and would run "
            f"on the CPU: {shown}",
            hint="export it again with another --opset or --attention, or use --provider cpu",
        )


@functools.cache
def cause(provider: str) -> str:
    """Return why a provider does not start, in parentheses; empty where that is unknown."""
    if provider in PLUGINS:
        return ""
    error = run_probe(probe_provider, PROVIDERS[provider]).get("error", "")
    conflict = tensorrt_conflict() if provider == "tensorrt" else None
    text = "; ".join(filter(None, (error, ": ".join(conflict or ()))))
    return f" ({text})" if text else ""


def first_line(error: BaseException) -> str:
    """Return the first line of a backend's message, without error codes and C++ source lines."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return _SOURCE_LINE.sub("", lines[0].split("] : ")[-1]).strip()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what ONNX Runtime prints and logs when it falls back; an error follows."""
    ort.set_default_logger_severity(FATAL_ONLY)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        ort.set_default_logger_severity(2)  # warnings: ONNX Runtime's own default


def rtx_devices() -> list[Any]:
    """Return the GPUs (`OrtEpDevice`) of the TensorRT-RTX plugin; at least one."""
    if not hasattr(ort, "register_execution_provider_library"):
        raise ProviderError(
            f"provider 'tensorrt-rtx': onnxruntime {ort.__version__} supports no plugins",
            hint="pip install --upgrade 'onnxruntime>=1.24'",
        )
    if importlib.util.find_spec(RTX_PLUGIN) is None:
        raise ProviderError(
            "provider 'tensorrt-rtx': its plugin for ONNX Runtime is not installed",
            hint=RTX_INSTALL,
        )
    with _registering:
        devices = _registered_devices() or _register_rtx()
    if not devices:
        raise ProviderError(
            f"provider 'tensorrt-rtx': the plugin finds no GPU that it supports ({RTX_GPUS})",
            hint="vit-export doctor",
        )
    return devices


def _registered_devices() -> list[Any]:
    return [gpu for gpu in ort.get_ep_devices() if gpu.ep_name == PROVIDERS["tensorrt-rtx"]]


def _register_rtx() -> list[Any]:
    library = importlib.import_module(RTX_PLUGIN).get_library_path()
    try:
        ort.register_execution_provider_library(PROVIDERS["tensorrt-rtx"], library)
    except BACKEND_ERRORS as error:
        if "already registered" not in str(error):
            reason = first_line(error).rpartition("with error: ")[2]
            raise ProviderError(
                f"provider 'tensorrt-rtx': its plugin cannot be loaded ({reason}); it needs an "
                "NVIDIA driver for CUDA 13",
                hint="vit-export doctor",
            ) from error
    return _registered_devices()

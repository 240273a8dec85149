"""Execution providers of ONNX Runtime: by our names, strict, with the reason when one fails."""

from __future__ import annotations

import contextlib
import functools
import io
import re
from collections.abc import Iterator

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as native

from vit_export.errors import ProviderError
from vit_export.host.nvidia import (
    load_tensorrt,
    onnxruntime_wheels,
    tensorrt_conflict,
    tensorrt_install,
)
from vit_export.host.probes import probe_provider, run_probe

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
}
PLUGINS = ("tensorrt-rtx",)  # not compiled into a wheel of ONNX Runtime
AUTO = ("cuda", "cpu")  # best first; a TensorRT engine takes minutes to build, so ask for it
ON_DEVICE = {"cuda": "cuda", "tensorrt": "cuda"}  # where tensors of a run lie; else in host memory
MAY_RUN_ON_CPU = frozenset({"Shape", "Size"})  # their result is host memory by definition
GPU_INSTALL = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
BACKEND_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    *(e for e in vars(native).values() if isinstance(e, type) and issubclass(e, Exception)),
)
FATAL_ONLY = 4  # onnxruntime's logging severities
_WARNINGS = 2
_PLACE = re.compile(r"^/\S+\.(?:cc|h):\d+ .*?\) (?=[A-Z])")


class FallbackError(ProviderError):
    """ONNX Runtime started another provider than the one it was given."""


@functools.cache
def installed_wheels() -> tuple[str, ...]:
    """`onnxruntime_wheels`, once in this process: it reads about every package installed."""
    return onnxruntime_wheels()


def both_wheels() -> bool:
    """Whether two wheels overwrite each other's files."""
    return len(installed_wheels()) > 1


def worth_trying(provider: str) -> bool:
    """Whether anybody expects the provider from what is installed: a CPU build has no CUDA."""
    return PROVIDERS[provider] in ort.get_available_providers() or both_wheels()


def check_wheel_usable(provider: str) -> None:
    """Raise ProviderError when the installed onnxruntime cannot have the provider."""
    if both_wheels():
        raise ProviderError(
            f"provider {provider!r}: {' and '.join(installed_wheels())} are both installed and "
            f"overwrite each other; keep one: {_gpu_install()}"
        )
    if provider in PLUGINS:
        return
    if PROVIDERS[provider] not in ort.get_available_providers():
        raise ProviderError(
            f"provider {provider!r}: the installed onnxruntime {ort.__version__} is built "
            f"without {PROVIDERS[provider]} (it has: {', '.join(ort.get_available_providers())}); "
            f"install the GPU build: {_gpu_install()}"
        )
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it misses; so do we, better
        ort.preload_dlls()  # the CUDA libraries that came as wheels
    if provider == "tensorrt":
        load_tensorrt()


def _gpu_install() -> str:
    """The command that leaves the GPU wheel alone in place."""
    wheels = installed_wheels()
    return f"pip uninstall -y {' '.join(wheels)} && {GPU_INSTALL}" if wheels else GPU_INSTALL


def check_no_fallback(session: ort.InferenceSession, provider: str, name: str) -> None:
    """Raise ProviderError unless the provider is active and runs every node."""
    wanted = PROVIDERS[provider]
    if session.get_providers()[0] != wanted:
        raise FallbackError(
            f"provider {provider!r} was asked for, but ONNX Runtime fell back to "
            f"{session.get_providers()[0]}; --provider cpu asks for that, and `vit-export doctor` "
            "says what this machine lacks"
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
            f"on the CPU: {shown}; export it again with another --opset or --attention, or "
            "take --provider cpu"
        )


@functools.cache
def cause(provider: str) -> str:
    """Why a provider does not start, as a child process and the installed libraries say it."""
    reasons = []
    if provider not in PLUGINS:
        reasons.append(run_probe(probe_provider, PROVIDERS[provider]).get("error", ""))
    if provider == "tensorrt" and (conflict := tensorrt_conflict()):
        reasons.append(f"{conflict}: {tensorrt_install()}")
    said = "; ".join(filter(None, reasons))
    return f" ({said})" if said else ""


def first_line(error: BaseException) -> str:
    """The first line of a backend's message, without its number and its place in C++."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return _PLACE.sub("", lines[0].split("] : ")[-1]).strip()


@contextlib.contextmanager
def quiet(provider: str) -> Iterator[None]:
    """Silence what onnxruntime prints and logs when it falls back: an error will say it."""
    if provider == "cpu":
        yield
        return
    ort.set_default_logger_severity(FATAL_ONLY)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        ort.set_default_logger_severity(_WARNINGS)  # as onnxruntime starts

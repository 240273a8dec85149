"""ONNX Runtime's execution providers: what installs each, which can start, and why one cannot.

A plugin is a wheel that adds its provider to the plain onnxruntime, from 1.24 on. Importing it
loads its libraries, so that happens only when the provider is requested.
"""

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import io
import re
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as native

from vit_export.errors import ProviderError
from vit_export.host.nvidia import (
    load_tensorrt,
    onnxruntime_wheels,
    provider_libraries,
    tensorrt_conflict,
)
from vit_export.host.probes import probe_provider, run_probe
from vit_export.runtime.onnxruntime.options import PROVIDERS

BACKEND_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    *(e for e in vars(native).values() if isinstance(e, type) and issubclass(e, Exception)),
)
RTX_GPUS = "compute capability 8.6, 8.9, or 12.0 and newer"  # tensorrt_rtx_provider_options.h
_registering = threading.Lock()
_SOURCE_LINE = re.compile(r"^/\S+\.(?:cc|h):\d+ .*?\) (?=[A-Z])")
installed_wheels = functools.cache(onnxruntime_wheels)  # reads the metadata of all packages


def worth_trying(provider: str) -> bool:
    """Whether the installed wheel should have the provider; one for CPUs has no CUDA."""
    # the wheel for CPUs overwrites the other's files; `importlib.metadata` takes 0.1 s to import
    folder = Path(ort.__file__).parents[1]
    return built_in(provider) or any(folder.glob("onnxruntime_gpu-*.dist-info"))


def built_in(provider: str) -> bool:
    """Whether the installed onnxruntime was compiled with the provider."""
    return PROVIDERS[provider].ort_name in ort.get_available_providers()


def uses_plugin(provider: str) -> bool:
    """Whether the provider comes from the wheel of its plugin."""
    return bool(PROVIDERS[provider].plugin) and not built_in(provider)


def check_version(
    owner: object, attribute: str, since: str, purpose: str, *, instead: str = ""
) -> None:
    """Raise ProviderError if the installed onnxruntime lacks an attribute that came later."""
    if not hasattr(owner, attribute):
        raise ProviderError(
            f"{purpose} needs onnxruntime {since} or newer, and {ort.__version__} is installed",
            hint=f"pip install --upgrade '{(installed_wheels() or ('onnxruntime',))[0]}>={since}'"
            + f"; or {instead}" * bool(instead),
        )


def uninstall_command() -> str:
    """Return the start of a command that replaces the installed wheels of ONNX Runtime."""
    wheels = installed_wheels()
    return f"pip uninstall -y {' '.join(wheels)} && " if wheels else ""


def join_hints(hints: Iterable[str]) -> str:
    """Join the hints of several providers; one `pip uninstall` comes before all that need it."""
    distinct, uninstall = [*dict.fromkeys(filter(None, hints))], uninstall_command()
    replacing = [hint for hint in distinct if uninstall and uninstall in hint]
    if len(replacing) < 2:
        return "; or ".join(distinct)
    others = [hint for hint in distinct if hint not in replacing]
    command = uninstall.removesuffix(" && ")
    start = f"replace the installed onnxruntime ({command}) by one of these: "
    installs = [hint.replace(uninstall, "") for hint in replacing]
    return "; or ".join([*others, start + installs[0], *installs[1:]])


def check_wheel_usable(provider: str) -> None:
    """Raise ProviderError if the installed onnxruntime cannot start the provider."""
    wheels, kind = installed_wheels(), PROVIDERS[provider]
    uninstall = uninstall_command()
    if len(wheels) > 1:
        keep = "onnxruntime" if kind.plugin or kind.build else kind.wheel
        raise ProviderError(
            f"provider {provider!r}: {' and '.join(wheels)} are both installed and overwrite each "
            "other",
            hint=f"{kind.needs}{uninstall}pip install '{keep}'",
        )
    if uses_plugin(provider):
        if importlib.util.find_spec(kind.plugin) is None:
            raise ProviderError(
                f"provider {provider!r}: its plugin for ONNX Runtime is not installed",
                hint=f"{kind.needs}pip install {kind.wheel}",
            )
    elif not built_in(provider):
        raise ProviderError(
            f"provider {provider!r}: the installed onnxruntime {ort.__version__} is built "
            f"without {kind.ort_name} (it has: {', '.join(ort.get_available_providers())})",
            hint=kind.needs + (kind.build or f"{uninstall}pip install '{kind.wheel}'"),
        )
    check_version(
        ort.InferenceSession, "get_provider_graph_assignment_info", "1.24.1",
        f"provider {provider!r}: the check that it runs every node",
    )  # fmt: skip
    if kind.memory == "cuda":
        _check_libraries(provider)


def _check_libraries(provider: str) -> None:
    """Load NVIDIA's libraries, since ONNX Runtime only logs a failure, and falls back."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
        ort.preload_dlls()
    if provider == "tensorrt":
        load_tensorrt()
    try:
        for library in provider_libraries(PROVIDERS[provider].ort_name):
            ctypes.CDLL(library)
    except OSError as error:
        conflict = tensorrt_conflict() if provider == "tensorrt" else None
        reason, remedy = (
            (f"; {conflict[0]}", conflict[1]) if conflict else ("", "vit-export doctor")
        )
        raise ProviderError(
            f"provider {provider!r} cannot start: {error}{reason}", hint=remedy
        ) from error


@functools.cache
def cause(provider: str) -> str:
    """Return why a provider does not start, in parentheses; empty where that is unknown."""
    if uses_plugin(provider):
        return ""
    error = run_probe(probe_provider, PROVIDERS[provider].ort_name).get("error", "")
    return f" ({error})" if error else ""


def first_line(error: BaseException) -> str:
    """Return the first line of a backend's message, without error codes and C++ source lines."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return _SOURCE_LINE.sub("", lines[0].split("] : ")[-1]).strip()


def plugin_devices(provider: str) -> list[Any]:
    """Return the devices (`OrtEpDevice`) of a plugin, which `check_wheel_usable` has found."""
    name, is_rtx = PROVIDERS[provider].ort_name, provider == "tensorrt-rtx"
    with _registering:
        if not any(device.ep_name == name for device in ort.get_ep_devices()):
            library = importlib.import_module(PROVIDERS[provider].plugin).get_library_path()
            try:
                ort.register_execution_provider_library(name, library)
            except BACKEND_ERRORS as error:
                if "already registered" not in str(error):
                    reason = first_line(error).rpartition("with error: ")[2]
                    needs = "; it needs an NVIDIA driver for CUDA 13" * is_rtx
                    raise ProviderError(
                        f"provider {provider!r}: its plugin cannot be loaded ({reason}){needs}",
                        hint="vit-export doctor",
                    ) from error
        devices = [device for device in ort.get_ep_devices() if device.ep_name == name]
    if not devices:
        raise ProviderError(
            f"provider {provider!r}: the plugin finds no device that it supports"
            + f" ({RTX_GPUS})" * is_rtx,
            hint="vit-export doctor",
        )
    return devices

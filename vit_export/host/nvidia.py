"""NVIDIA's libraries: which ones ONNX Runtime's wheels are linked with, and which are installed.

What a wheel needs is read off its files, since the package's metadata does not say it. Nothing
is loaded here but by `load_tensorrt`.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import re
from pathlib import Path

from vit_export.host.elf import needed

LIBRARIES = {
    "CUDAExecutionProvider": "libonnxruntime_providers_cuda.so",
    "TensorrtExecutionProvider": "libonnxruntime_providers_tensorrt.so",
}
RTX_PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"  # its module
RTX_PLUGIN_WHEELS = (
    "onnxruntime-ep-nv-tensorrt-rtx-cu13",
    "onnxruntime-ep-nv-tensorrt-rtx-cu12",
    "onnxruntime-ep-nv-tensorrt-rtx",
)
RTX_INSTALL = "pip install onnxruntime-ep-nv-tensorrt-rtx"
TENSORRT_WHEELS = (
    *("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    *("tensorrt-cu13-bindings", "tensorrt-cu12-bindings"),
)
TENSORRT_RTX_WHEELS = (
    *("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
    *("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings"),
)
TENSORRT_LIBRARIES = "tensorrt_libs"  # the module in which TensorRT's wheels keep them


def version_of(*distributions: str) -> str:
    """Version of the first of these distributions that is installed; empty without one."""
    for name in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return ""


def onnxruntime_wheels() -> tuple[str, ...]:
    """Names of the installed wheels that bring the module `onnxruntime`; two break each other."""
    owners = importlib.metadata.packages_distributions().get("onnxruntime", ())
    return tuple(sorted({name.lower().replace("_", "-") for name in owners if name}))


def libraries_of(provider: str) -> tuple[str, ...]:
    """CUDA, cuDNN and TensorRT libraries that a provider of the installed wheel is linked with.

    Args:
        provider: ONNX Runtime's name for it, e.g. `"TensorrtExecutionProvider"`.

    Returns:
        e.g. `("libcublasLt.so.13", "libcudart.so.13", "libcuda.so.1")`; nothing where the
        wheel lacks the provider, or is not for Linux.
    """
    spec = importlib.util.find_spec("onnxruntime")
    folders = [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
    for folder in folders:
        library = folder / "capi" / LIBRARIES.get(provider, "")
        if library.is_file():
            return tuple(name for name in needed(library) if re.match(r"lib(cu|nv)", name))
    return ()


def major_of(libraries: tuple[str, ...], stem: str) -> str:
    """Major version in a library's name: `"13"` of `libcudart.so.13` for the stem `libcudart`."""
    matches = (re.fullmatch(rf"{stem}\.so\.(\d+)", name) for name in libraries)
    return next((match[1] for match in matches if match), "")


def tensorrt_conflict() -> str:
    """Why ONNX Runtime's TensorRT provider cannot use what is installed, in one sentence.

    Returns:
        Empty when the installed TensorRT has the major version that the provider is linked with,
        and where there is no such provider.
    """
    libraries = libraries_of("TensorrtExecutionProvider")
    linked = major_of(libraries, "libnvinfer")
    installed = version_of(*TENSORRT_WHEELS)
    if not linked or installed.partition(".")[0] == linked:
        return ""
    found = f"TensorRT {installed} is installed" if installed else "no TensorRT wheel is installed"
    return (
        f"ONNX Runtime's TensorRT provider is linked with TensorRT {linked} "
        f"(libnvinfer.so.{linked}) and {found}: {tensorrt_install()}"
    )


def tensorrt_install() -> str:
    """The command that installs the TensorRT which ONNX Runtime's provider is linked with."""
    libraries = libraries_of("TensorrtExecutionProvider")
    linked = int(major_of(libraries, "libnvinfer") or 10)
    cuda = major_of(libraries, "libcudart") or "13"
    return f"pip install 'tensorrt-cu{cuda}>={linked},<{linked + 1}'"


def load_tensorrt() -> None:
    """Load TensorRT's libraries from its wheel, where the dynamic loader does not look.

    ONNX Runtime finds them by name once they are loaded; `onnxruntime.preload_dlls()` does this
    for CUDA and cuDNN only. What cannot be loaded is left to the provider's own error.
    """
    spec = importlib.util.find_spec(TENSORRT_LIBRARIES)
    libraries = libraries_of("TensorrtExecutionProvider")
    for folder in (spec and spec.submodule_search_locations) or ():
        for name in libraries:
            if name.startswith("libnv") and (Path(folder) / name).is_file():
                with contextlib.suppress(OSError):
                    ctypes.CDLL(str(Path(folder) / name), mode=ctypes.RTLD_GLOBAL)


def version_tuple(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: of `"10.13.3.9.post1"` (10, 13, 3, 9).

    What follows them, as in `"2.13.0+cpu"` and `"2.14rc1"`, does not count.
    """
    numbers = re.match(r"[0-9]+(?:\.[0-9]+)*", version)
    return tuple(map(int, numbers[0].split("."))) if numbers else ()

"""NVIDIA libraries: which ones ONNX Runtime's wheels are linked with, and which are installed.

A wheel's metadata does not say which libraries it is linked with, so `ldd` lists them. Only
`load_tensorrt` loads libraries into this process.
"""

import contextlib
import ctypes
import functools
import importlib.util
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
RTX = "NvTensorRTRTXExecutionProvider"
PROVIDER_LIBRARIES = {
    CUDA: "libonnxruntime_providers_cuda.so",
    TENSORRT: "libonnxruntime_providers_tensorrt.so",
}
RTX_PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"  # its module
RTX_INSTALL = "pip install onnxruntime-ep-nv-tensorrt-rtx"
RTX_PLUGIN_WHEELS = tuple(f"onnxruntime-ep-nv-tensorrt-rtx{end}" for end in ("-cu13", "-cu12", ""))
WHEELS = {  # package -> wheels that contain the same module
    name: (name, *(f"{name}-cu{cuda}{end}" for end in ("", "-bindings") for cuda in (13, 12)))
    for name in ("tensorrt", "tensorrt-rtx")
}


def version_of(*distributions: str) -> str:
    """Return the version of the first of these distributions that is installed, or `""`."""
    import importlib.metadata  # 0.1 s, which a run on the CPU does without

    for name in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return ""


def onnxruntime_wheels() -> tuple[str, ...]:
    """Return the installed wheels that contain `onnxruntime`; two overwrite each other's files."""
    import importlib.metadata

    owners = importlib.metadata.packages_distributions().get("onnxruntime", ())
    return tuple(sorted({name.lower().replace("_", "-") for name in owners if name}))


def provider_libraries(provider: str) -> tuple[str, ...]:
    """Return the NVIDIA libraries that a provider of the installed wheel is linked with."""
    spec = importlib.util.find_spec("onnxruntime")
    for folder in (spec and spec.submodule_search_locations) or ():
        library = Path(folder, "capi", PROVIDER_LIBRARIES.get(provider, ""))
        if library.is_file():
            return linked_libraries(library)
    return ()


@functools.cache
def linked_libraries(library: Path) -> tuple[str, ...]:
    """Return what a library needs of NVIDIA, e.g. `"libcudart.so.13"`; empty without `ldd`."""
    try:
        listing = subprocess.run(["ldd", library], capture_output=True, text=True, check=False)
    except OSError:
        return ()
    return tuple(re.findall(r"^\s*(lib(?:cu|nv)\S+)", listing.stdout, flags=re.MULTILINE))


def major_version(libraries: Iterable[str], stem: str) -> str:
    """Return the major version in a library's name: `"13"` for `libcudart` of `libcudart.so.13`."""
    matches = (re.fullmatch(rf"{stem}\.so\.(\d+)", name) for name in libraries)
    return next((match[1] for match in matches if match), "")


def tensorrt_conflict() -> tuple[str, str] | None:
    """Return why ONNX Runtime's TensorRT provider cannot use the installed TensorRT, and a remedy.

    `None` where the major versions are equal, and where the installed wheel has no such provider.
    """
    libraries = provider_libraries(TENSORRT)
    linked, cuda = major_version(libraries, "libnvinfer"), major_version(libraries, "libcudart")
    installed = version_of(*WHEELS["tensorrt"])
    if not linked or installed.partition(".")[0] == linked:
        return None
    found = f"TensorRT {installed} is installed" if installed else "no TensorRT wheel is installed"
    return (
        f"ONNX Runtime's TensorRT provider is linked with TensorRT {linked} "
        f"(libnvinfer.so.{linked}) and {found}",
        f"pip install 'tensorrt-cu{cuda or 13}>={linked},<{int(linked) + 1}'",
    )


def load_tensorrt() -> None:
    """Load TensorRT's libraries from its wheel; `onnxruntime.preload_dlls()` omits them."""
    spec = importlib.util.find_spec("tensorrt_libs")  # in which TensorRT's wheels keep them
    for folder in (spec and spec.submodule_search_locations) or ():
        for name in provider_libraries(TENSORRT):
            if name.startswith("libnv") and Path(folder, name).is_file():
                with contextlib.suppress(OSError):  # the provider's own error names it
                    ctypes.CDLL(str(Path(folder, name)), mode=ctypes.RTLD_GLOBAL)

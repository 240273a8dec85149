"""The real wheels of NVIDIA's providers, with empty libraries in place of NVIDIA's own."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from vit_export.host.nvidia import PROVIDER_LIBRARIES, RTX_PLUGIN, linked_libraries

ARTIFACT = Path(__file__).parents[1] / "edge" / "data" / "edge.onnx"
RTX_LIBRARY = "libonnxruntime_providers_nv_tensorrt_rtx.so"
NO_DEVICE = 100  # CUresult CUDA_ERROR_NO_DEVICE, and cudaErrorNoDevice
TEXT = 'const char *{}(void) {{ return "an empty library"; }}'
FUNCTIONS = {  # the parser of `device_id` counts the devices first
    "cudaGetDeviceCount": "int {}(int *count) {{ *count = 2; return 0; }}",
    **dict.fromkeys(("cudaGetErrorString", "cudaGetErrorName", "nvmlErrorString"), TEXT),
}

# Which symbols without a version belong to which library.
OWNERS = {
    "libcuda.so.1": r"cu[A-Z]",
    "libcurand.so.10": r"curand",
    "libnvinfer.so.10": r"createInfer|getInfer|getPluginRegistry",
    "libnvonnxparser.so.10": r"createNvOnnx",
    "libnvidia-ml.so.1": r"nvml",
}


def package(name: str) -> Path:
    """Folder of an installed package, which is not imported."""
    (folder,) = importlib.util.find_spec(name).submodule_search_locations
    return Path(folder)


@pytest.fixture
def artifact() -> Path:
    """A small artifact of vit-export."""
    return ARTIFACT


@pytest.fixture(scope="session")
def rtx_folder() -> Path:
    """Folder of the TensorRT-RTX plugin."""
    return package(RTX_PLUGIN)


@pytest.fixture(scope="session")
def empty_libraries(tmp_path_factory, rtx_folder) -> Path:
    """A folder of libraries that the real providers can be loaded with.

    Each has NVIDIA's name and defines every symbol, with its version, that a provider needs of
    it; the runtime counts two devices, and every other function returns "no device". So the
    providers' own code runs as far as it needs no GPU.
    """
    folder = tmp_path_factory.mktemp("empty")
    capi = package("onnxruntime") / "capi"
    symbols: dict[str, set[str]] = defaultdict(set)
    for library in (
        *(capi / name for name in PROVIDER_LIBRARIES.values()),
        rtx_folder / RTX_LIBRARY,
    ):
        listed = subprocess.run(
            ["nm", "-D", "--undefined-only", "--with-symbol-versions", library],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        for line in listed.stdout.splitlines():
            name, _, version = line.split()[-1].partition("@")
            owners = [o for o, pattern in OWNERS.items() if re.match(pattern, name)]
            if version.startswith("libcu"):
                symbols[version].add(name)
            elif not version and owners:
                symbols[owners[0]].add(name)
        symbols |= {
            soname: set()
            for soname in linked_libraries(library)
            if re.match("lib(cu|nvi|nvo)", soname) and soname not in symbols
        }
    for soname, names in symbols.items():
        _compile(folder, soname, names)
    return folder


@pytest.fixture
def empty_driver(empty_libraries, tmp_path) -> Path:
    """The driver's libraries alone: a driver without a device."""
    folder = tmp_path / "driver"
    folder.mkdir()
    for name in ("libcuda.so.1", "libnvidia-ml.so.1"):
        (folder / name).write_bytes((empty_libraries / name).read_bytes())
    return folder


def _compile(folder: Path, soname: str, names: set[str]) -> None:
    source, versions = folder / f"{soname}.c", folder / f"{soname}.map"
    failing = f"int {{}}(void) {{{{ return {NO_DEVICE}; }}}}"
    functions = (FUNCTIONS.get(name, failing).format(name) for name in sorted(names))
    source.write_text("\n".join(functions) + "\n")
    versions.write_text(f"{soname} {{ global: *; }};\n")
    command = ["cc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{soname}", "-o", folder / soname]
    if soname not in OWNERS:
        command.append(f"-Wl,--version-script={versions}")
    subprocess.run([*command, source], check=True)


@pytest.fixture
def python():
    """Runs code in a fresh interpreter, with more libraries and packages where given."""

    def run(code: str, *arguments: str | Path, libraries: Path | None = None,
            packages: Path | None = None) -> Any:  # fmt: skip
        environment = dict(os.environ)
        environment.pop("LD_LIBRARY_PATH", None)
        environment["NVIDIA_TF32_OVERRIDE"] = "0"  # the artifacts are fp32
        if libraries is not None:
            environment["LD_LIBRARY_PATH"] = str(libraries)
        if packages is not None:
            environment["PYTHONPATH"] = str(packages)
        child = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True, text=True, env=environment, check=False,
        )  # fmt: skip
        assert child.returncode == 0, child.stderr
        return json.loads(child.stdout.splitlines()[-1])

    return run


@pytest.fixture
def wheel(tmp_path):
    """Writes the metadata of a distribution into a folder, for `packages` of `python`."""

    def put(name: str, version: str) -> Path:
        info = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (info / "METADATA").write_text(text)
        (info / "top_level.txt").write_text(name.partition("-")[0] + "\n")
        return tmp_path

    return put

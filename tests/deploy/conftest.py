"""What the tests of the C++ library share: headers, a build, the programs built with it."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CMAKE_FOLDER = ROOT / "vit_export" / "deploy" / "cpp"
MADE = ROOT / "build" / "cpp"  # kept between runs: CMake builds only what has changed
BUILD_SECONDS = 600


def command(*words: str | Path, timeout: float = BUILD_SECONDS, **options: object) -> str:
    """Run a program, which must succeed; return what it prints."""
    child = subprocess.run(
        [*map(str, words)], capture_output=True, text=True, timeout=timeout, check=False,
        **options,
    )  # fmt: skip
    assert child.returncode == 0, f"{words[0]} failed:\n{child.stdout}\n{child.stderr}"
    return child.stdout


@pytest.fixture(scope="session")
def onnxruntime_library() -> Path:
    """Folder of ONNX Runtime's library in the Python wheel."""
    spec = importlib.util.find_spec("onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "capi"


@pytest.fixture(scope="session")
def onnxruntime_headers() -> Path:
    """Folder of `onnxruntime_c_api.h`."""
    folder = Path(os.environ.get("ONNXRUNTIME_INCLUDE_DIR", ROOT / "build/onnxruntime-headers"))
    if not (folder / "onnxruntime_c_api.h").is_file():
        command(ROOT / "scripts" / "onnxruntime-headers", folder)
    return folder


@pytest.fixture(scope="session")
def cmake_build(onnxruntime_headers: Path) -> Callable[..., Path]:
    """Configures and builds a CMake project; returns its build folder.

    `cmake_build(source, "name", "-DOPTION=ON", ...)`; warnings are errors.
    """
    for tool in ("cmake", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} on this machine: scripts/test-cpp installs it")
    made: dict[str, Path] = {}

    def build(source: Path, name: str, *options: str) -> Path:
        if name not in made:
            generator = ("-G", "Ninja") if shutil.which("ninja") else ()
            MADE.mkdir(parents=True, exist_ok=True)
            with (MADE / f"{name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # pytest-xdist may build it in another process
                command(
                    "cmake", "-S", source, "-B", MADE / name, *generator,
                    f"-DONNXRUNTIME_INCLUDE_DIR={onnxruntime_headers}", "-DVIT_EXPORT_WERROR=ON",
                    *options,
                )  # fmt: skip
                command("cmake", "--build", MADE / name, "--parallel", "2")
            made[name] = MADE / name
        return made[name]

    return build


@pytest.fixture(scope="session")
def release(cmake_build: Callable[..., Path]) -> Path:
    """Folder of all programs, optimised, and of `library/libvit_export.so`, which they use."""
    return cmake_build(
        Path(__file__).parent / "cpp", "release", "-DBUILD_SHARED_LIBS=ON",
        "-DVIT_EXPORT_BUILD_EXAMPLES=ON", "-DVIT_EXPORT_INSTALL=ON",
    )  # fmt: skip


@pytest.fixture
def run_program(onnxruntime_library: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a program on ONNX Runtime's library of the Python wheel."""

    def run(*words: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "ONNXRUNTIME_LIBRARY": str(onnxruntime_library), **variables}
        return subprocess.run(
            [*map(str, words)], capture_output=True, text=True, timeout=300, check=False,
            env=environment,
        )  # fmt: skip

    return run

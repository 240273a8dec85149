"""The C++ library as its users get it: installed, as a sub-project, on another ONNX Runtime."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.cpp
HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CMAKE_FOLDER = ROOT / "vit_export" / "deploy" / "cpp"
MODEL = ROOT / "tests" / "edge" / "data" / "edge.onnx"
Run = Callable[..., subprocess.CompletedProcess[str]]

PROGRAM = """
#include <vit_export/vit_export.hpp>
#include <iostream>
int main(int, char** argv) {
  const vit::Model model(argv[1]);
  std::cout << model.runtime().version << ' ' << model.selftest().passed << std::endl;
}
"""
USER = """
cmake_minimum_required(VERSION 3.20)
project(user LANGUAGES CXX)
{find}
add_executable(user user.cpp)
target_link_libraries(user PRIVATE vit_export::vit_export)
"""

JSON = """
cmake_minimum_required(VERSION 3.20)
project(json LANGUAGES CXX)
add_library(nlohmann_json INTERFACE)
add_library(nlohmann_json::nlohmann_json ALIAS nlohmann_json)
"""


def command(*words: str | Path, **variables: str) -> str:
    """Run a program, which must succeed; return what it prints."""
    environment = {**os.environ, **variables}
    child = subprocess.run(
        [*map(str, words)], capture_output=True, text=True, check=False, env=environment
    )
    assert child.returncode == 0, f"{words}\n{child.stdout}\n{child.stderr}"
    return child.stdout


def write_project(folder: Path, find: str) -> Path:
    """Write a user's project."""
    folder.mkdir()
    (folder / "user.cpp").write_text(PROGRAM, encoding="utf-8")
    (folder / "CMakeLists.txt").write_text(USER.format(find=find), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def installed(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefix into which the shared library is installed."""
    prefix = tmp_path_factory.mktemp("prefix")
    command("cmake", "--install", release, "--prefix", prefix)
    return prefix


def test_cmake_finds_the_installed_package(
    installed: Path, run_program: Run, tmp_path: Path
) -> None:
    user = write_project(tmp_path / "user", "find_package(vit_export 0.1 CONFIG REQUIRED)")
    command("cmake", "-S", user, "-B", user / "build", f"-DCMAKE_PREFIX_PATH={installed}")
    command("cmake", "--build", user / "build")
    assert run_program(user / "build" / "user", MODEL).stdout.endswith(" 1\n")


def test_pkg_config_finds_the_installed_package(
    installed: Path, run_program: Run, tmp_path: Path
) -> None:
    (folder,) = {path.parent for path in installed.rglob("vit_export.pc")}
    flags = command(
        "pkg-config", "--cflags", "--libs", "vit_export", PKG_CONFIG_PATH=str(folder)
    ).split()
    (tmp_path / "user.cpp").write_text(PROGRAM, encoding="utf-8")
    program = tmp_path / "user"
    command("c++", "-std=c++17", tmp_path / "user.cpp", "-o", program, *flags)
    child = run_program(program, MODEL, LD_LIBRARY_PATH=str(folder.parent))
    assert child.stdout.endswith(" 1\n"), child.stderr


@pytest.fixture(scope="session")
def oldest_cmake() -> Path:
    """The oldest CMake that the library promises to build with; its wheel is kept in build/."""
    folder = ROOT / "build" / "cpp" / "cmake-3.20"
    program = folder / "cmake" / "data" / "bin" / "cmake"
    if not program.is_file():
        command(
            sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder,
            "cmake==3.20.*",
        )  # fmt: skip
        program.chmod(0o755)
    return program


def test_cmake_3_20_configures_it_and_installs_only_a_project_of_its_own(
    oldest_cmake: Path, onnxruntime_headers: Path, tmp_path: Path
) -> None:
    user = write_project(tmp_path / "user", f"add_subdirectory({CMAKE_FOLDER} library)")
    for source, installs in ((CMAKE_FOLDER, "ON"), (user, "OFF")):
        build = tmp_path / installs
        headers = f"-DONNXRUNTIME_INCLUDE_DIR={onnxruntime_headers}"
        command(oldest_cmake, "-S", source, "-B", build, headers, "-DVIT_EXPORT_BUILD_EXAMPLES=ON")
        cache = (build / "CMakeCache.txt").read_text(encoding="utf-8")
        assert f"VIT_EXPORT_INSTALL:BOOL={installs}\n" in cache


def test_json_may_come_from_elsewhere_than_the_system(
    oldest_cmake: Path, onnxruntime_headers: Path, tmp_path: Path
) -> None:
    """By FetchContent, here from a folder in place of the download."""
    (tmp_path / "CMakeLists.txt").write_text(JSON, encoding="utf-8")
    words = [
        "-G", "Ninja", "-S", CMAKE_FOLDER, "-B", tmp_path / "build",
        f"-DONNXRUNTIME_INCLUDE_DIR={onnxruntime_headers}",
        "-DCMAKE_DISABLE_FIND_PACKAGE_nlohmann_json=ON",
    ]  # fmt: skip
    child = subprocess.run([oldest_cmake, *words], capture_output=True, text=True, check=False)
    assert "-DVIT_EXPORT_FETCH_JSON=ON" in child.stderr
    source = f"-DFETCHCONTENT_SOURCE_DIR_NLOHMANN_JSON={tmp_path}"
    command(oldest_cmake, *words, "-DVIT_EXPORT_FETCH_JSON=ON", source)
    reader = "CMakeFiles/vit_export.dir/src/json_text.cpp.o"
    command(oldest_cmake, "--build", tmp_path / "build", "--target", reader)


def test_the_wheel_contains_headers_and_sources(tmp_path: Path) -> None:
    command(
        sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path, PWD=str(ROOT)
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    folder = CMAKE_FOLDER.relative_to(ROOT)
    missing = {
        str(folder / path.relative_to(CMAKE_FOLDER))
        for path in CMAKE_FOLDER.rglob("*")
        if path.is_file()
    } - names
    assert missing == set()


@pytest.mark.parametrize("version", ["1.24.4", "newest"])
def test_another_onnxruntime_runs_underneath_without_a_rebuild(
    release: Path, run_program: Run, tmp_path: Path, version: str
) -> None:
    """The wheels are downloaded once, and kept in build/."""
    wheels = ROOT / "build" / "cpp" / "wheels" / version
    wanted = "onnxruntime" if version == "newest" else f"onnxruntime=={version}"
    if not wheels.is_dir():
        command(
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
            "--dest", wheels, wanted,
        )  # fmt: skip
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [
            n for n in archive.namelist() if n.startswith("onnxruntime/capi/libonnxruntime.so")
        ]
        archive.extractall(tmp_path, names)
    folder = str(tmp_path / "onnxruntime" / "capi")
    program = release / "probe"
    child = run_program(program, MODEL, "manifest", ONNXRUNTIME_LIBRARY=folder)
    assert wheel.name.split("-")[1] in child.stdout, child.stdout
    child = run_program(program, MODEL, "selftest", ONNXRUNTIME_LIBRARY=folder)
    assert child.stdout.startswith("passed "), child.stdout


def test_a_library_that_is_too_old_or_missing_is_an_error(
    release: Path, run_program: Run, tmp_path: Path
) -> None:
    program = release / "probe"
    child = run_program(program, MODEL, "manifest", ONNXRUNTIME_LIBRARY=str(tmp_path))
    assert "holds no libonnxruntime.so" in child.stdout
    assert "hint: `pip install onnxruntime`" in child.stdout
    child = run_program(program, MODEL, "manifest", ONNXRUNTIME_LIBRARY="")
    assert "ONNX Runtime's library cannot be loaded: libonnxruntime.so.1: cannot" in child.stdout


def test_the_library_is_found_beside_the_program(
    release: Path, onnxruntime_library: Path, run_program: Run, tmp_path: Path
) -> None:
    program = tmp_path / "probe"
    program.write_bytes((release / "probe").read_bytes())
    program.chmod(0o755)
    (library,) = onnxruntime_library.glob("libonnxruntime.so.*")
    (tmp_path / library.name).symlink_to(library)
    child = run_program(program, MODEL, "selftest", ONNXRUNTIME_LIBRARY="")
    assert child.stdout.startswith("passed "), child.stdout


def test_the_code_is_formatted() -> None:
    """By clang-format 14, which is Debian 12's: other versions break lines elsewhere."""
    if shutil.which("clang-format-14") is None:
        pytest.skip("no clang-format-14 on this machine: scripts/test-cpp installs it")
    suffixes = {".c", ".h", ".cpp", ".hpp"}
    folders = (CMAKE_FOLDER, HERE.parent)
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix in suffixes]
    style = f"--style=file:{CMAKE_FOLDER / '.clang-format'}"
    command("clang-format-14", style, "--dry-run", "-Werror", *files)

"""The folder of `package --target cpp`, copied elsewhere, builds by its README and classifies."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from markdown_pages import ROOT

from vit_export.cli.main import main
from vit_export.deploy.package_cpp import CMAKE_FOLDER
from vit_export.pipeline.package import package

pytestmark = pytest.mark.cpp
EDGE = ROOT / "tests" / "edge" / "data" / "edge.onnx"


def test_the_readme_of_a_copied_folder_leads_to_a_program(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    photographs: list[Path],
    onnxruntime_headers: Path,
    onnxruntime_library: Path,
) -> None:
    """Every command of it but the installation, in a folder without anything else."""
    made = package(EDGE, tmp_path / "made", target="cpp").folder
    copied = tmp_path / "elsewhere"
    shutil.copytree(made, copied)
    shutil.rmtree(made)
    monkeypatch.chdir(copied)
    monkeypatch.setenv("CMAKE_BUILD_TYPE", "Debug")  # compiles in less than half the time
    # whose Python it names has ONNX Runtime
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    shutil.copy(photographs[0], "photo.jpg")
    blocks = re.findall(r"^```bash\n(.*?)^```$", Path("README.md").read_text(), re.M | re.S)
    commands = "".join(block for block in blocks if "apt-get" not in block)
    assert "cmake" in commands
    commands = commands.replace("/path/to/onnxruntime/include", str(onnxruntime_headers))
    commands = commands.replace("/path/to/libonnxruntime.so", str(onnxruntime_library))
    done = subprocess.run(["bash", "-euc", commands], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "selftest passed" in done.stdout
    monkeypatch.setenv("ONNXRUNTIME_LIBRARY", str(onnxruntime_library))
    words = ["model/edge.onnx", "photo.jpg", "--json"]
    found = subprocess.run(
        ["build/vit-classify", *words], capture_output=True, text=True, check=True
    )
    expected = CliRunner().invoke(main, ["predict", "--provider", "cpu", *words])
    (one,), (other,) = (json.loads(text.splitlines()[-1])["predictions"]
                        for text in (found.stdout, expected.stdout))  # fmt: skip
    assert [p["label"] for p in one["top"]] == [p["label"] for p in other["top"]]
    example = subprocess.run(["build/example"], capture_output=True, text=True, check=True)
    assert len(example.stdout.splitlines()) == 5


def test_the_program_builds_on_an_installed_library_without_libjpeg_and_libpng(
    cmake_build: Callable[..., Path],
    release: Path,
    run_program: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """For a board without them: the self-test works, and an image is an error with a reason."""
    prefix = release.parent / "installed"  # kept, as what CMake knows of it is
    subprocess.run(["cmake", "--install", release, "--prefix", prefix], check=True)
    source = CMAKE_FOLDER / "examples" / "vit-classify"
    options = (f"-DCMAKE_PREFIX_PATH={prefix}", "-DVIT_EXPORT_EXAMPLE_IMAGES=OFF")
    program = cmake_build(source, "no_images", *options) / "vit-classify"
    assert run_program(program, EDGE, "--selftest", "--bench", "2").returncode == 0
    done = run_program(program, EDGE, "photo.jpg")
    assert done.returncode == 1
    assert "built without JPEG and PNG" in done.stderr

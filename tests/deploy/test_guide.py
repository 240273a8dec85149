"""docs/guides/cpp.md, run as it stands: from a checkpoint to a running program."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from markdown_pages import ROOT, run_page

from vit_export.checkpoint.own import save_checkpoint
from vit_export.model.vit import VisionTransformer

pytestmark = pytest.mark.cpp
PAGE = ROOT / "docs" / "guides" / "cpp.md"


def test_the_guide_leads_to_a_program_that_classifies(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_model: Callable[..., VisionTransformer],
    photographs: list[Path],
    onnxruntime_headers: Path,
    run_program: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """Its shell lines, and then its program in place of the example."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONNXRUNTIME_HEADERS", str(onnxruntime_headers))
    monkeypatch.setenv("CMAKE_BUILD_TYPE", "Debug")  # compiles in less than half the time
    monkeypatch.delenv("ONNXRUNTIME_LIBRARY", raising=False)
    save_checkpoint(make_model(), Path("model.safetensors"))
    shutil.copy(photographs[0], "photo.jpg")
    run_page(PAGE)
    (program,) = re.findall(r"^```cpp\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    Path("model-cpp/example.cpp").write_text(program)
    subprocess.run(["cmake", "--build", "build", "--target", "example"], check=True)
    done = run_program("build/example", "model-cpp/model/model.onnx")
    assert done.returncode == 0, done.stderr
    *classes, features = done.stdout.splitlines()
    assert [len(line.split()) for line in classes] == [3, 3, 3]  # "class 7 0.2"
    assert features == "32 features"

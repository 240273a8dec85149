"""The timing cache that builds share, with the empty cache object of TensorRT-RTX."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vit_export.artifact.engine_sidecar import Gpu
from vit_export.engine.build import cache_key, load_cache, locked, save_cache
from vit_export.errors import OutputError
from vit_export.runtime.tensorrt.backend import Backend, load_backend

pytestmark = pytest.mark.filterwarnings(
    "ignore:Use Deprecated in TensorRT-RTX 1.2. Timing cache operations:DeprecationWarning"
)
COUNT = """
import sys
from pathlib import Path
from vit_export.engine.build import locked
path = Path(sys.argv[1])
for _ in range(40):
    with locked(path):
        path.write_text(str(int(path.read_text()) + 1))
"""


@pytest.fixture
def config() -> Any:
    """A builder's configuration."""
    rtx = load_backend("tensorrt-rtx")
    builder = rtx.trt.Builder(rtx.logger)
    return builder.create_builder_config()


def test_a_cache_is_saved_loaded_and_merged(config: Any, tmp_path: Path) -> None:
    """The first build has no file to read."""
    path = tmp_path / "timings"
    load_cache(config, path)
    save_cache(config, path)
    first = path.read_bytes()
    assert first
    load_cache(config, path)
    save_cache(config, path)
    assert path.read_bytes() == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["timings", "timings.lock"]


def test_processes_wait_for_each_other(tmp_path: Path) -> None:
    """Three of them count to 120 in one file."""
    path = tmp_path / "count"
    path.write_text("0")
    command = [sys.executable, "-c", COUNT, str(path)]
    children = [subprocess.Popen(command) for _ in range(3)]
    assert [child.wait() for child in children] == [0, 0, 0]
    assert path.read_text() == "120"


def test_a_lock_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path / "no" / "folder", tmp_path, Path()):
        with pytest.raises(OutputError, match="cannot lock"), locked(path):
            pass


def test_the_key_names_version_and_gpu() -> None:
    """TensorRT-RTX has no cache."""
    gpu = Gpu(name="NVIDIA L4", compute_capability="8.9")
    trt = Backend(name="tensorrt", trt=None, version="11.4.0.106", logger=None)
    assert cache_key(trt, gpu) == "tensorrt 11.4.0.106, NVIDIA L4 (compute capability 8.9)"
    assert cache_key(load_backend("tensorrt-rtx"), gpu) == ""

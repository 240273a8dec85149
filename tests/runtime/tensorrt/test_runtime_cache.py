"""The runtime cache of TensorRT-RTX, on a fake engine: a real one needs a GPU."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from vit_export.artifact.engine_sidecar import Check, Gpu
from vit_export.cli.main import main
from vit_export.errors import OutputError, ProviderWarning, UsageError
from vit_export.runtime import load_engine

L4 = Gpu(name="NVIDIA L4", compute_capability="8.9", driver="13.0")
X = np.zeros((8, 3, 32, 32), np.float32)


@pytest.fixture
def load_rtx(make_engine: Callable[..., Path], tmp_path: Path) -> Callable[[], Any]:
    """Loads an engine of TensorRT-RTX with a cache file."""
    path = make_engine(backend="tensorrt-rtx")
    return lambda: load_engine(path, trusted=True, runtime_cache=tmp_path / "kernels")


def test_kernels_are_written_after_the_first_run_of_a_batch_size_and_read_again(
    load_rtx: Callable[[], Any], tmp_path: Path
) -> None:
    file = tmp_path / "kernels"
    with load_rtx() as model:
        assert not file.exists()
        for batch in (2, 8, 2):
            model(X[:batch])
            assert batch in file.read_bytes()
    with load_rtx() as model:
        written = file.stat().st_mtime_ns
        model(X[:2])
        assert file.stat().st_mtime_ns == written  # nothing is new
        model(X[:4])
    assert file.read_bytes() == b"kernels \2\4\x08"
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_kernels_compiled_after_a_run_are_written_when_the_model_is_closed(
    load_rtx: Callable[[], Any], tmp_path: Path
) -> None:
    """TensorRT-RTX compiles some in the background."""
    with load_rtx() as model:
        model(X)
        model.runner._plan.runtime_cache.kernels.batches.add(9)
        model(X)
        assert (tmp_path / "kernels").read_bytes() == b"kernels \x08"
    assert (tmp_path / "kernels").read_bytes() == b"kernels \x08\x09"


def test_a_file_that_tensorrt_rejects_is_not_replaced(
    load_rtx: Callable[[], Any], tmp_path: Path
) -> None:
    """It may be anything; the engine runs."""
    (tmp_path / "kernels").write_bytes(b"my only photo")
    with (
        pytest.warns(ProviderWarning, match="kernels: neither used nor replaced.*delete it"),
        load_rtx() as model,
    ):
        model(X)
    assert (tmp_path / "kernels").read_bytes() == b"my only photo"


def test_a_cache_that_a_context_does_not_accept_is_a_warning(
    load_rtx: Callable[[], Any], tmp_path: Path
) -> None:
    """One, and the file stays as it is."""
    with load_rtx() as model:
        model.runner.engine.accepts_cache = False
        with pytest.warns(ProviderWarning, match="kernels: neither used nor .* not accept"):
            model(X)
        model(X[:2])
    assert not (tmp_path / "kernels").exists()


def test_a_cache_that_cannot_be_written_does_not_stop_the_runs(
    load_rtx: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full disk; one warning."""

    def full(_path: Path, _data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with load_rtx() as model:
        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.warns(ProviderWarning, match="cannot be written: No space left"):
            model(X)
        model(X[:2])


def test_a_cache_in_a_missing_folder_or_for_tensorrt_is_an_error(
    make_engine: Callable[..., Path], tmp_path: Path
) -> None:
    rtx = make_engine(backend="tensorrt-rtx")
    for path, reason in (
        (tmp_path / "none" / "kernels", "no such folder"),
        (tmp_path, "directory"),
    ):
        with pytest.raises(OutputError, match=rf"cannot be the runtime cache \(.*{reason}"):
            load_engine(rtx, trusted=True, runtime_cache=path)
    with pytest.raises(UsageError, match=r"runtime_cache=.* is for engines of tensorrt-rtx"):
        load_engine(make_engine(), trusted=True, runtime_cache=tmp_path / "kernels")


def test_predict_keeps_kernels_in_the_file_that_is_named(
    make_engine: Callable[..., Path], photographs: list[Path], tmp_path: Path
) -> None:
    check = Check(gpu=L4, plan_sha256=hashlib.sha256(b"abc").hexdigest(), version="11.4.0.106")
    engine, file = make_engine(backend="tensorrt-rtx", checks=(check,)), tmp_path / "kernels"
    preparation = ["--mean", "0.5", "--std", "0.5", "--crop-pct", "1", "--interpolation", "bicubic"]
    words = ["predict", str(engine), str(photographs[0]), "--runtime-cache", str(file)]
    answer = CliRunner().invoke(main, [*words, *preparation])
    assert answer.exit_code == 0, answer.output
    assert file.read_bytes() == b"kernels \1"


@pytest.mark.parametrize("command", ["predict", "validate"])
def test_a_runtime_cache_is_for_engines_only(
    tiny_export: Any, photographs: list[Path], command: str
) -> None:
    words = [command, str(tiny_export.path), *([str(photographs[0])] * (command == "predict"))]
    answer = CliRunner().invoke(main, [*words, "--runtime-cache", "kernels"])
    assert answer.exit_code == 2
    assert "--runtime-cache" in answer.stderr
    assert "for engines" in answer.stderr

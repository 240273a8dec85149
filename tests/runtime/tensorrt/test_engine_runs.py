"""The checks of scripts/gpu_checks/engine_runs.py on the fake engine; a real one needs a GPU."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda.core._utils.cuda_utils import CUDAError
from fake_cuda import FakeDevice

from vit_export.runtime.tensorrt.runner import TrtRunner
from vit_export.runtime.tensorrt.session import Session


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch, make_engine: Callable[..., Path]) -> Any:
    """The module, whose engines are fake ones."""
    monkeypatch.syspath_prepend(Path(__file__).parents[3] / "scripts")
    from gpu_checks import engine_runs

    for backend in ("tensorrt", "tensorrt-rtx"):
        monkeypatch.setitem(engine_runs.BACKEND_NEEDS, backend, lambda: None)
    monkeypatch.setattr(
        engine_runs, "engine_path", lambda folder, backend, *_: make_engine(backend=backend)
    )
    monkeypatch.setattr(Session, "_new_context", Session._new_context)  # restored afterwards

    def sync(self: FakeDevice) -> None:
        for stream in self._cuda.captures:
            self._cuda.captures[stream] = None
            raise CUDAError("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")

    monkeypatch.setattr(FakeDevice, "sync", sync, raising=False)
    return engine_runs


@pytest.mark.parametrize(
    ("times", "why"), [((0, 5, 10, 11), ""), ((0, 1, 10, 15), "the first run took 5")]
)
def test_kernels_of_a_file_make_the_first_run_shorter(checks, tmp_path, monkeypatch, times, why):
    """By the clock of the check."""
    from gpu_checks.outcome import FailedError

    clock = iter(times)
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    if why:
        with pytest.raises(FailedError, match=why):
            checks.runtime_cache(tmp_path)
        return
    found = checks.runtime_cache(tmp_path)
    assert found == {"compiled_s": 5, "cached_s": 1, "size_bytes": len(b"kernels \1")}


def test_a_runtime_that_writes_no_kernels_is_found(checks, tmp_path, monkeypatch):
    """An engine that ignores the cache."""
    from gpu_checks.outcome import FailedError

    from vit_export import runtime

    load_engine = runtime.load_engine
    monkeypatch.setattr(
        runtime, "load_engine", lambda path, trusted, **_: load_engine(path, trusted=trusted)
    )
    with pytest.raises(FailedError, match="no kernels were written"):
        checks.runtime_cache(tmp_path)


def test_a_failed_capture_is_one_warning_and_right_results(checks, tmp_path):
    """The context breaks its own capture."""
    assert "without CUDA graphs" in checks.failed_capture(tmp_path)["warning"]


def test_a_capture_that_does_not_fail_is_found(checks, tmp_path, monkeypatch):
    """The check would show nothing."""
    from gpu_checks.outcome import FailedError

    monkeypatch.setattr(FakeDevice, "sync", lambda self: None)
    with pytest.raises(FailedError, match="0 warnings for one capture that failed"):
        checks.failed_capture(tmp_path)


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_memory_that_stays_level_passes(checks, tmp_path, monkeypatch, backend):
    """However much the first round takes."""
    used = iter([0, 10**9, 10**9 + 5])
    monkeypatch.setattr(checks, "used_bytes", lambda: next(used))
    found = checks.memory_under_threads(tmp_path, backend)
    assert (found["first_round_bytes"], found["second_round_bytes"]) == (10**9, 5)
    assert found["contexts"] >= 1


@pytest.mark.parametrize("fault", ["leak", "results"])
def test_a_leak_and_results_of_another_thread_are_found(checks, tmp_path, monkeypatch, fault):
    """Each by its own evidence."""
    from gpu_checks.outcome import FailedError

    used = count(step=10**8) if fault == "leak" else count(step=0)
    monkeypatch.setattr(checks, "used_bytes", lambda: next(used))
    if fault == "results":
        run, calls = TrtRunner.run, count()
        monkeypatch.setattr(
            TrtRunner, "run",
            lambda *a, **k: {n: y + np.float32(next(calls) > 40) for n, y in run(*a, **k).items()},
        )  # fmt: skip
    why = "took 100,000,000 bytes more" if fault == "leak" else "got other results than alone"
    with pytest.raises(FailedError, match=why):
        checks.memory_under_threads(tmp_path, "tensorrt")

"""The checks of TensorRT, with stand-ins that break each claim."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from vit_export import runtime


@pytest.fixture
def engines(on_the_cpu, monkeypatch, tmp_path):
    """`runtime.load` with an engine cache; what is wrong with it can be said."""
    from gpu_checks import tensorrt

    load = runtime.load
    wrong, now = set(), [0.0]  # the clock of the check: only builds take time, or a slow load
    monkeypatch.setattr(tensorrt.time, "perf_counter", lambda: now[0])

    def caching(path, *, options):
        if options.engine_cache is None or "no cache" in wrong:
            return load(path)
        name = "edge" if "one for all" in wrong else Path(path).parent.name
        plan = Path(options.engine_cache) / f"{name}.engine"
        if plan.exists() and "built again" not in wrong:
            taken = tensorrt.EDGE if "one for all" in wrong else path
            now[0] += 3 if "slow" in wrong else 1
            return load(taken)
        now[0] += 3  # the build
        plan.parent.mkdir(exist_ok=True)
        plan.write_text(str(time.monotonic_ns()))
        return load(path)

    monkeypatch.setattr(runtime, "load", caching)
    return wrong


def test_a_good_engine_cache_passes(engines, tmp_path):
    """The second load takes what the first has built."""
    from gpu_checks import tensorrt

    measured = tensorrt.engine_cache(tmp_path)
    assert measured == {"first_s": 3, "cached_s": 1}


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("no cache", "no engine was cached"),
        ("built again", "the second load wrote an engine again"),
        ("slow", "the second load took"),
        ("one for all", "the engine of other weights was taken"),
    ],
)
def test_an_engine_cache_that_does_not_work_is_found(engines, tmp_path, fault, why):
    """Each claim by its own evidence."""
    from gpu_checks import tensorrt
    from gpu_checks.outcome import FailedError

    engines.add(fault)
    with pytest.raises(FailedError, match=why):
        tensorrt.engine_cache(tmp_path)


def test_an_engine_is_reported_with_what_the_inspector_shows_and_with_every_warning(
    monkeypatch, tmp_path
):
    """They are warnings until a GPU has confirmed them, so the report must have them."""
    from gpu_checks import tensorrt

    stage = {"passed": True, "reason": "", "max_abs": 0.1, "tolerance": 0.2}
    proof = {"network": {"HALF": 14}, "engine": "not shown", "warnings": ["no formats are shown"]}
    answers = {
        "engine": {"passed": True, "seconds": 1.0, "size_bytes": 5, "sidecar": {"proof": proof}},
        "validate": {"hop": stage},
    }
    monkeypatch.setitem(tensorrt.BACKEND_NEEDS, "tensorrt", lambda: None)
    monkeypatch.setattr(tensorrt, "command", lambda name, *_: answers[name])
    measured = tensorrt.engine(tmp_path, "tensorrt", "edge", "fp16")
    assert measured["network"] == {"HALF": 14}
    assert measured["inspector"] == "not shown"
    assert measured["warnings"] == "no formats are shown"

"""A session starts as many threads as this process may use."""

from __future__ import annotations

import gc

import pytest

from vit_export.errors import UsageError
from vit_export.runtime.onnxruntime import session as sessions
from vit_export.runtime.onnxruntime import threads
from vit_export.runtime.onnxruntime.runner import OrtRunner
from vit_export.runtime.onnxruntime.threads import default_threads, with_threads

SPINNING = "session.intra_op.allow_spinning"


@pytest.fixture
def machine(monkeypatch):
    """A function that sets the CPUs of the host, those allowed, and those that a quota leaves."""

    def set_cpus(host: int, allowed: int, usable: int) -> None:
        monkeypatch.setattr(threads.os, "cpu_count", lambda: host)
        monkeypatch.setattr(threads, "allowed_cpus", lambda: allowed)
        monkeypatch.setattr(threads, "usable_cpus", lambda: usable)
        monkeypatch.setattr(sessions, "_open", set())

    return set_cpus


@pytest.mark.parametrize(
    ("cpus", "others_open", "expected"),
    [
        ((64, 64, 64), False, {}),  # ONNX Runtime counts the physical cores itself
        ((64, 64, 2), False, {"intra_op_num_threads": 2, SPINNING: "0"}),  # a quota
        ((64, 4, 4), False, {"intra_op_num_threads": 4}),  # an affinity: cores of its own
        ((64, 4, 2), False, {"intra_op_num_threads": 2, SPINNING: "0"}),
        ((64, 64, 64), True, {SPINNING: "0"}),
    ],
)
def test_threads_fit_quota_and_affinity(machine, cpus, others_open, expected):
    """Threads spin only on cores that nobody else of this process needs."""
    machine(*cpus)
    assert default_threads(others_open=others_open) == expected


def options_of(runner: OrtRunner):
    return runner._session.get_session_options()


def test_a_real_session_gets_the_threads_of_the_quota(machine, tiny_export):
    """The number that was given wins, and so does an entry of the session's options."""
    machine(64, 64, 3)
    assert options_of(OrtRunner(tiny_export.path)).intra_op_num_threads == 3
    assert options_of(OrtRunner(tiny_export.path, threads=2)).intra_op_num_threads == 2
    own = OrtRunner(tiny_export.path, session_options={"intra_op_num_threads": 1, SPINNING: "1"})
    assert options_of(own).intra_op_num_threads == 1
    assert options_of(own).get_session_config_entry(SPINNING) == "1"


def test_threads_of_a_second_session_do_not_spin(machine, tiny_export):
    """Those of the only one do; a session that is closed does not count."""
    machine(2, 2, 2)
    sessions._open = sessions.WeakSet()
    first = OrtRunner(tiny_export.path)
    with pytest.raises(RuntimeError):  # not set: ONNX Runtime's default
        options_of(first).get_session_config_entry(SPINNING)
    second = OrtRunner(tiny_export.path)
    assert options_of(second).get_session_config_entry(SPINNING) == "0"
    first.release()
    second.release()
    gc.collect()
    with pytest.raises(RuntimeError):
        options_of(OrtRunner(tiny_export.path)).get_session_config_entry(SPINNING)


@pytest.mark.parametrize("name", ["intra_op_num_threads", "inter_op_num_threads"])
@pytest.mark.parametrize("number", [-1, 257, 10**6, True])
def test_threads_of_the_session_options_have_the_same_limit(name, number):
    """ONNX Runtime would try to start them all; 0 is its own choice."""
    with pytest.raises(UsageError, match=f"{name}={number!r}: expected a whole number from 0"):
        with_threads({name: number}, None)
    assert with_threads({name: 0}, None) == {name: 0}

"""A check in a process of its own."""

from __future__ import annotations

import fcntl
import signal
import sys
import time
from pathlib import Path

import pytest

ANSWER = """
import json, os, subprocess, sys, time
from pathlib import Path
def answer(**changes):
    outcome = {"name": "a check", "status": "passed", "why": "", "measured": {"ms": 2.5}}
    Path(sys.argv[sys.argv.index("--answer") + 1]).write_text(json.dumps({**outcome, **changes}))
"""


def child(tmp_path, code: str, *, timeout_s: float = 20, left_s: float = 60):
    """What becomes of a check whose process does this."""
    from gpu_checks.child import run_one
    from gpu_checks.outcome import Check

    (tmp_path / "stand_in.py").write_text(ANSWER + code)
    command = [sys.executable, "-S", str(tmp_path / "stand_in.py")]
    return run_one(Check("a check", print, timeout_s=timeout_s), command, tmp_path, left_s)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("raise ValueError('odd')", "ValueError: odd (exit status 1)"),
        ("os.abort()", "no message (exit status -6)"),
        ("answer(); os.abort()", "no message (exit status -6)"),
        ("pass", "it ended without an answer (exit status 0)"),
        ("answer(name='another')", "it answered 'passed' to 'another'"),
        ("answer(status='fine')", "it answered 'fine' to 'a check'"),
    ],
)
def test_a_check_that_ends_by_itself_has_failed(tmp_path, code, why):
    """A crash of a driver is no pass, and does not end the others."""
    outcome = child(tmp_path, code)
    assert (outcome.status, outcome.why) == ("FAILED", why)


@pytest.mark.parametrize(
    "code",
    ["Path(sys.argv[-1]).write_text('{')", "Path(sys.argv[-1]).write_text('7')", "answer(odd=1)"],
)
def test_an_answer_that_cannot_be_read_is_a_failure(tmp_path, code):
    """Of that check alone."""
    outcome = child(tmp_path, code)
    assert outcome.status == "FAILED"
    assert outcome.why.startswith("its answer cannot be read: ")


def test_output_of_a_library_is_not_the_answer(tmp_path):
    """Nor does an answer of the check before count."""
    assert child(tmp_path, "answer(); print('bye'); print('bye', file=sys.stderr)").measured == {
        "ms": 2.5
    }
    assert child(tmp_path, "print('bye')").status == "FAILED"


def test_a_check_that_hangs_has_failed(tmp_path):
    """After its time."""
    outcome = child(tmp_path, "time.sleep(60)", timeout_s=0.5)
    assert (outcome.status, outcome.why) == ("FAILED", "no answer within 0.5 s")


def test_a_check_that_all_checks_left_no_time_for_was_not_run(tmp_path):
    """It might have passed."""
    outcome = child(tmp_path, "time.sleep(60)", left_s=0.5)
    assert outcome.status == "not run"
    assert "no time is left" in outcome.why


def is_free(lock: Path) -> bool:
    """Whether nobody holds a lock; the file is there."""
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@pytest.mark.parametrize("ended_by", ["its time", "an interrupt", "itself"])
def test_processes_that_a_check_started_end_with_it(tmp_path, ended_by):
    """A command that goes on would slow down every later check. Here one holds a lock."""
    lock = tmp_path / "lock"
    code = f"""
import fcntl
file = open({str(lock)!r}, "w")
fcntl.flock(file, fcntl.LOCK_EX)
subprocess.Popen(["sleep", "60"], pass_fds=[file.fileno()])
{"answer()" if ended_by == "itself" else "time.sleep(60)"}
"""
    if ended_by == "an interrupt":
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 2)
        with pytest.raises(KeyboardInterrupt):
            child(tmp_path, code)
        signal.signal(signal.SIGALRM, before)
    else:
        child(tmp_path, code, timeout_s=2)
    assert any(is_free(lock) or time.sleep(0.1) for _ in range(50)), "the command goes on"

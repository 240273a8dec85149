"""One check in a process of its own: whatever becomes of that, here it is an outcome.

The child answers by a file, so that what libraries print is no answer. It leads a process group,
which ends with it: a command that it started would go on under every later speed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from gpu_checks.outcome import FAILED, NOT_RUN, STATUSES, Check, Outcome

NO_TIME = "the minutes are used up (--minutes)"


def run_one(check: Check, command: Sequence[str], folder: Path, left_s: float) -> Outcome:
    """Run a check in a child: a crash, a hang or an exception there is a failure here.

    Args:
        check: The check.
        command: Runs it, and writes the answer to the file after `--answer`.
        folder: Where the answer is put.
        left_s: Time left to all checks; where it ends this one early, nothing is known.
    """
    answer = folder / "answer.json"
    answer.unlink(missing_ok=True)
    start = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        status = _ended([*command, "--answer", str(answer)], said, min(left_s, check.timeout_s))
        said.seek(0)
        last = (said.read().strip().splitlines() or ["it said nothing"])[-1]
    seconds = time.monotonic() - start
    if status is None and left_s < check.timeout_s:
        return Outcome(check.name, NOT_RUN, f"ended after {seconds:.0f} s: {NO_TIME}",
                       seconds=seconds)  # fmt: skip
    if status is None:
        why = f"no answer within {check.timeout_s:g} s"
        return Outcome(check.name, FAILED, why, seconds=seconds)
    if status:
        why = f"{last} (exit status {status})"
        return Outcome(check.name, FAILED, why, seconds=seconds)
    return dataclasses.replace(_read(answer, check), seconds=seconds)


def _ended(command: Sequence[str], said: object, limit_s: float) -> int | None:
    """Exit status of a command, `None` past its time; its whole group is ended in any case."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said,
        start_new_session=True,
    )  # fmt: skip
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return None
    finally:  # an interrupt too: the terminal's Ctrl-C does not reach another session
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _read(answer: Path, check: Check) -> Outcome:
    """The outcome in an answer file; one that cannot be read is a failure."""
    try:
        outcome = Outcome(**json.loads(answer.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return Outcome(check.name, FAILED, "it ended without an answer (exit status 0)")
    except (OSError, ValueError, TypeError) as error:
        return Outcome(check.name, FAILED, f"its answer cannot be read: {error}")
    if outcome.name != check.name or outcome.status not in STATUSES:
        return Outcome(check.name, FAILED, f"it answered {outcome.status!r} to {outcome.name!r}")
    return outcome

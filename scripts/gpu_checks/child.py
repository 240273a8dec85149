"""Runs one check in a child process; a crash or a hang there is an outcome here.

The child writes its outcome to a file, since libraries print to its standard output. It leads a
process group that is killed with it: a command left running would slow down later checks.
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

NO_TIME = "no time is left (--minutes)"


def run_one(check: Check, command: Sequence[str], folder: Path, left_s: float) -> Outcome:
    """Run a check in a child: a crash, a hang or an exception there is a failure here.

    Args:
        check: The check.
        command: Runs it, and writes the answer to the file after `--answer`.
        folder: Folder of the answer file.
        left_s: Time left for all checks; a check that it cuts short is not run, not failed.
    """
    answer = folder / "answer.json"
    answer.unlink(missing_ok=True)
    start = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        status = _ended([*command, "--answer", str(answer)], log, min(left_s, check.timeout_s))
        log.seek(0)
        last = (log.read().strip().splitlines() or ["no message"])[-1]
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


def _ended(command: Sequence[str], log: object, limit_s: float) -> int | None:
    """Return the exit status of a command, `None` after a timeout; its process group is killed."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log,
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
    """Return the outcome in an answer file; a file that cannot be read is a failure."""
    try:
        outcome = Outcome(**json.loads(answer.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return Outcome(check.name, FAILED, "it ended without an answer (exit status 0)")
    except (OSError, ValueError, TypeError) as error:
        return Outcome(check.name, FAILED, f"its answer cannot be read: {error}")
    if outcome.name != check.name or outcome.status not in STATUSES:
        return Outcome(check.name, FAILED, f"it answered {outcome.status!r} to {outcome.name!r}")
    return outcome

"""A child process that answers orders, one line of JSON each, and takes its crashes with it."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from typing import IO, Any

from vit_export.errors import BenchmarkError, UsageError, VitExportError

Order = dict[str, Any]
Answer = dict[str, Any]
LAST_WORDS = 3000  # characters of standard error that are looked at


class Child:
    """The parent's side.

    Args:
        module: Whose `main()` runs in the child; it calls `answer_orders`.

    Raises:
        BenchmarkError: By `ask`, when the child died, refused, or gave no answer in time.
        UsageError: By `ask`, when no child could do what was asked.
    """

    def __init__(self, module: str) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "PYTHONSAFEPATH": "1",  # nothing of the current folder shadows a library
        }
        self._given_up_after_s: float | None = None
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (close)
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {module} import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, order: str, *, timeout_s: float = math.inf, **arguments: Any) -> Answer:
        """Give an order and wait for its answer; a child that gives none in time is ended."""
        timer = threading.Timer(min(timeout_s, threading.TIMEOUT_MAX), self._give_up, [timeout_s])
        timer.daemon = True
        timer.start()
        try:
            line = self._answer_to(json.dumps({"order": order, **arguments}))
        finally:
            timer.cancel()
        if not line:
            raise BenchmarkError(self._last_words())
        answer: Answer = json.loads(line)
        if "error" in answer:
            kind = UsageError if answer["exit_code"] == UsageError.exit_code else BenchmarkError
            raise kind(answer["error"])
        return answer

    def _answer_to(self, order: str) -> str:
        """A line of JSON; empty when the child ended instead."""
        if self._process.stdin is None or self._process.stdout is None:
            return ""
        try:
            self._process.stdin.write(order + "\n")
            self._process.stdin.flush()
            return self._process.stdout.readline()
        except BrokenPipeError:
            return ""  # it has died; its last words say why

    def _give_up(self, timeout_s: float) -> None:
        self._given_up_after_s = timeout_s
        self._process.kill()

    @property
    def alive(self) -> bool:
        """Whether it can take another order."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the child, whatever it is doing."""
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def _last_words(self) -> str:
        status = self._process.wait()
        if self._given_up_after_s is not None:
            return f"gave no answer for {self._given_up_after_s:.3g} s, and was ended"
        how = f"exit status {status}" if status >= 0 else f"killed by {_signal_name(-status)}"
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - LAST_WORDS))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f"its process ended ({how}): {lines[-1] if lines else 'it said nothing'}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def answer_orders(handlers: Mapping[str, Callable[[Order], Answer]]) -> None:
    """The child's side: answer orders on standard input until it ends.

    What a backend prints goes to standard error, so that answers stay alone. An error of ours
    is an answer; anything else ends the process, and its traceback is its last words.
    """
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        for line in sys.stdin:
            order = json.loads(line)
            try:
                answer = handlers[order["order"]](order)
            except VitExportError as error:
                answer = {"error": str(error), "exit_code": error.exit_code}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()

"""Child processes of Python: one command, or a worker that answers orders.

A crash or a hang of a child, and what it prints, do not affect this process. A child imports
nothing from the current folder, where a file `json.py` would replace a library.
"""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import vit_export
from vit_export.errors import UsageError, VitExportError

Answer = dict[str, Any]
LOG_TAIL_BYTES = 3000  # of standard error, for messages

# `python -c` puts the current folder first on sys.path, except with PYTHONSAFEPATH.
START = "import sys; sys.path[:1] == [''] and sys.path.pop(0); from {module} import main; main()"


class WorkerError(VitExportError):
    """A worker died, refused an order, or gave no answer in time."""


def child_environment() -> dict[str, str]:
    """Return the environment of a child, which imports from where this process does.

    The current folder is left out, unless the user's own PYTHONPATH names it.
    """
    here = os.getcwd()
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    folders = [path for path in sys.path if path and (path != here or path in named)]
    installed = str(Path(vit_export.__file__).parents[1])
    if installed not in folders:  # a checkout in which `python -m vit_export` was typed
        folders.append(installed)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}


def run_module(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `main()` of a module in a child and wait for it, with its output captured."""
    return subprocess.run(
        [sys.executable, "-c", START.format(module=module), *arguments],
        env=child_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip


class Worker(subprocess.Popen[str]):
    """A child that answers orders, one line of JSON each: its `main()` calls `answer_orders`."""

    def __init__(self, module: str) -> None:
        self._log: IO[bytes] = tempfile.TemporaryFile("a+b")  # noqa: SIM115  (closed by `__exit__`)
        super().__init__(
            [sys.executable, "-c", START.format(module=module)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
            text=True, env=child_environment(),
        )  # fmt: skip

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.communicate()
        self._log.close()

    def ask(self, order: str, *, timeout_s: float = math.inf, **arguments: Any) -> Answer:
        """Call a handler of the child with JSON values; kill the child after `timeout_s`.

        Every error is a WorkerError, but a UsageError of the handler.
        """
        started = time.monotonic()
        timer = threading.Timer(min(timeout_s, threading.TIMEOUT_MAX), self.kill)
        timer.daemon = True
        timer.start()
        try:
            request = json.dumps({"order": order, **arguments})
            print(request, file=self.stdin, flush=True)
            line = next(iter(self.stdout or ()), "")
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            late = time.monotonic() - started >= timeout_s
            killed = f"no answer within {timeout_s:.3g} s, so its process was killed"
            cause = self._cause_of_death()
            raise WorkerError(killed if late else cause)
        reply = json.loads(line)
        if "raised" in reply:
            error_type = UsageError if reply["exit_code"] == UsageError.exit_code else WorkerError
            raise error_type(reply["raised"], hint=reply["hint"])
        return dict(reply["answer"])

    def log(self) -> list[str]:
        """Return the last lines that the child wrote to standard error."""
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - LOG_TAIL_BYTES))
        return self._log.read().decode(errors="replace").strip().splitlines()

    def _cause_of_death(self) -> str:
        status = self.wait()
        signals = {entry.value: entry.name for entry in signal.Signals}
        killed_by = signals.get(-status, f"signal {-status}")
        how = f"exit status {status}" if status >= 0 else f"killed by {killed_by}"
        return f"its process ended ({how}): {(self.log() or ['no message'])[-1]}"


def answer_orders(handlers: Mapping[str, Callable[..., Answer]]) -> None:
    """Answer the orders on standard input until it ends; the child's side of `Worker.ask`.

    What libraries print goes to standard error, and so to the log. An error of this package
    becomes a reply; any other ends the process, with its traceback last in the log.
    """
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as replies:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        for line in sys.stdin:
            order = json.loads(line)
            try:
                reply: dict[str, Any] = {"answer": handlers[order.pop("order")](**order)}
            except VitExportError as error:
                reply = {"raised": error.message, "hint": error.hint, "exit_code": error.exit_code}
            print(json.dumps(reply), file=replies, flush=True)

"""Processes of the peers: a command with its time and memory, and a worker that takes turns."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parents[1]
TIMEOUT_S = 1800.0
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


class Failed(Exception):  # noqa: N818
    """A peer did not do what it was told; the message is the reason."""


def environment(threads: int) -> dict[str, str]:
    """Return the environment variables of every candidate: the same threads, no network."""
    named = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    paths = (str(SCRIPTS.parent), str(SCRIPTS))  # vit_export, peers
    return {
        **os.environ, **OFFLINE, **{name: str(value) for name, value in named.items()},
        "OMP_WAIT_POLICY": "passive", "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONWARNINGS": "ignore",
    }  # fmt: skip


def last_line(log: str) -> str:
    """Return the reason in the output of a process: its last line with text."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"


def run(command: list[object], threads: int) -> dict[str, Any]:
    """Run a command to its end; return wall and processor seconds and peak resident bytes."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        process = subprocess.Popen(
            list(map(str, command)), stdout=log, stderr=log, env=environment(threads)
        )
        timer = threading.Timer(TIMEOUT_S, process.kill)
        timer.start()
        _, status, usage = os.wait4(process.pid, 0)
        timer.cancel()
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        if process.returncode:
            raise Failed(f"exit status {process.returncode}: {last_line(log.read())}")
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
    }


class Worker:
    """A candidate in a process of its own, that lives until the end of the run."""

    def __init__(self, python: Path, module: str, threads: int) -> None:
        self.started = time.perf_counter()
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        self._process = subprocess.Popen(
            [python, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._log, text=True, env=environment(threads),
        )  # fmt: skip

    def ask(self, order: str, **arguments: Any) -> dict[str, Any]:
        """Give an order and return its reply; raises Failed where the process has ended."""
        timer = threading.Timer(TIMEOUT_S, self._process.kill)
        timer.start()
        try:
            print(json.dumps({"order": order, **arguments}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            status = self._process.wait()
            self._log.seek(0)
            raise Failed(f"ended with status {status}: {last_line(self._log.read())}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._log.close()

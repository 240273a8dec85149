"""A long build that shows where it is, and that Ctrl-C stops."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent import futures
from typing import Any

from vit_export.progress import Progress
from vit_export.runtime.tensorrt.backend import Backend

POLL_S = 0.1  # how soon the waiting thread notices Ctrl-C


class Phases:
    """How far a build is, of the nested phases that TensorRT reports.

    TensorRT opens a phase of n steps, and within a step perhaps another phase.
    """

    def __init__(self) -> None:
        self._open: dict[str, tuple[str | None, int, int]] = {}  # parent, done, total
        self._furthest = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins."""
        self._open[name] = (parent, 0, max(steps, 1))

    def step(self, name: str, index: int) -> None:
        """A step of a phase is done; the first has index 0."""
        if name in self._open:
            parent, _, total = self._open[name]
            self._open[name] = (parent, min(index + 1, total), total)

    def finish(self, name: str) -> None:
        """A phase ends."""
        self._open.pop(name, None)

    @property
    def share(self) -> float:
        """Share of the build that is done, 0 to 1, as far as TensorRT tells; it never falls."""
        inner = 0.0
        for parent, done, total in reversed(self._open.values()):
            inner = min((done + inner) / total, 1.0)
            if parent is None:
                break
        self._furthest = max(self._furthest, inner)
        return self._furthest


def monitor(backend: Backend, progress: Progress, cancelled: threading.Event) -> Any:
    """An `IProgressMonitor` that tells `progress`, and stops the build once `cancelled` is set.

    What `progress` raises stops the build too; TensorRT would call it a cancellation, so it is
    kept as `failure`.
    """
    trt = backend.trt
    phases, lock = Phases(), threading.Lock()

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        """Called by TensorRT from whichever thread it works in."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.failure: Exception | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with lock:
                phases.start(phase_name, parent_phase, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            with lock:
                phases.finish(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with lock:
                phases.step(phase_name, step)
                share = phases.share
            try:
                progress("build the engine", round(100 * share), 100)
            except Exception as error:  # noqa: BLE001  (the caller of the build raises it)
                self.failure = error
                return False
            return not cancelled.is_set()

    return Monitor()


def interruptible(build: Callable[[], Any], cancelled: threading.Event) -> Any:
    """Run a build in a thread of its own, so that this one can hear Ctrl-C.

    Python handles signals between bytecodes of the main thread, and a build is one call. On an
    interrupt (or a SIGTERM that raises) `cancelled` is set, TensorRT stops at its next step, and
    the interrupt goes on its way.

    Returns:
        What the build returned.
    """
    with futures.ThreadPoolExecutor(1, thread_name_prefix="build") as pool:
        pool.submit(int).result()  # the pool waits for no thread whose start was interrupted
        try:
            future = pool.submit(build)
            while not futures.wait([future], timeout=POLL_S).done:
                pass
        except BaseException:  # leaving the pool waits until TensorRT has stopped
            cancelled.set()
            raise
    return future.result()

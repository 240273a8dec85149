"""Progress of a build, and stopping it with Ctrl-C."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent import futures
from typing import Any

from vit_export.progress import Progress
from vit_export.runtime.tensorrt.backend import Backend

POLL_S = 0.1  # how soon the waiting thread notices Ctrl-C


class Phases:
    """The nested phases that TensorRT reports: a phase has steps, a step may contain a phase."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[str | None, int, int]] = {}  # parent, done, total
        self._furthest = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Begin a phase."""
        self._open[name] = (parent, 0, max(steps, 1))

    def step(self, name: str, index: int) -> None:
        """Complete a step of a phase; the first has index 0."""
        if name in self._open:
            parent, _, total = self._open[name]
            self._open[name] = (parent, min(index + 1, total), total)

    def finish(self, name: str) -> None:
        """End a phase."""
        self._open.pop(name, None)

    @property
    def share(self) -> float:
        """Share of the build that is done, 0 to 1; it never falls."""
        inner = 0.0
        for parent, done, total in reversed(self._open.values()):
            inner = min((done + inner) / total, 1.0)
            if parent is None:
                break
        self._furthest = max(self._furthest, inner)
        return self._furthest


def monitor(backend: Backend, progress: Progress, cancelled: threading.Event) -> Any:
    """Return an `IProgressMonitor` that calls `progress`, and stops the build on `cancelled`.

    An exception of `progress` stops the build too. TensorRT reports that as a cancellation, so
    the exception is kept as `failure`.
    """
    trt = backend.trt
    phases, lock = Phases(), threading.Lock()

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        """Called by TensorRT from any of its threads."""

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
            except Exception as error:  # noqa: BLE001  (`build_plan` raises it again)
                self.failure = error
                return False
            return not cancelled.is_set()

    return Monitor()


def interruptible(build: Callable[[], Any], cancelled: threading.Event) -> Any:
    """Run a build in another thread, so that this thread receives Ctrl-C.

    Python handles signals between bytecodes of the main thread, and a build is one call. On an
    interrupt (or a SIGTERM that raises) `cancelled` is set, TensorRT stops at its next step, and
    then the interrupt is raised.

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

"""Progress of a build, and stopping it with Ctrl-C."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent import futures
from typing import Any

from vit_export.progress import Progress
from vit_export.runtime.tensorrt.backend import Backend

POLL_S = 0.1  # how soon the waiting thread notices Ctrl-C


def monitor(backend: Backend, progress: Progress, cancelled: threading.Event) -> Any:
    """Return an `IProgressMonitor` that calls `progress`, and stops the build on `cancelled`.

    An exception of `progress` stops the build too. TensorRT reports that as a cancellation, so
    the exception is kept as `failure`.
    """

    class Monitor(backend.trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        """Called by TensorRT from any of its threads, with phases that contain each other."""

        def __init__(self) -> None:
            backend.trt.IProgressMonitor.__init__(self)
            self.failure: Exception | None = None
            self._lock = threading.Lock()
            self._open: dict[str, tuple[int, int]] = {}  # outer phase first -> steps, done and all
            self._furthest = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._open[phase_name] = 0, max(num_steps, 1)

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self._open.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                if phase_name in self._open:
                    self._open[phase_name] = step + 1, self._open[phase_name][1]
                share = 0.0
                for done, total in reversed(self._open.values()):
                    share = min((done + share) / total, 1.0)
                self._furthest = max(self._furthest, share)
                percent = round(100 * self._furthest)
            try:
                progress("build the engine", percent, 100)
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

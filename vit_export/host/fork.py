"""Do work in a forked child process while this process goes on.

A fork shares the memory of this process, so nothing is loaded or copied twice. Only Linux forks
safely; elsewhere the work is done in this process.
"""

import contextlib
import gc
import multiprocessing
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import TypeVar

# A child that uses no processor time for so long is taken to wait for a lock that a thread of this
# process held at the fork: the child has no such thread, so nothing would ever release it.
STALL_S = 30.0
T = TypeVar("T")


@contextlib.contextmanager
def forked(work: Callable[[], T], *, allowed: bool = True) -> Iterator[Callable[[], T]]:
    """Start work in a child; yield a function that waits for its result, which is pickled.

    Where the child raises, dies or stalls, that function does the work again in this process, so
    that an error is the same with and without a child. It does all of it where no child can be
    forked: outside the main thread, as other threads may hold locks; in a daemon of
    `multiprocessing`; where the system has no room for a process; and where it is not `allowed`. A
    child that still works when the context ends is killed.
    """
    main = threading.current_thread() is threading.main_thread()
    daemon = multiprocessing.current_process().daemon
    if sys.platform != "linux" or not main or daemon or not allowed:
        yield work
        return
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send_result, args=(work, sender), daemon=True)
    is_running = _start(child)
    sender.close()  # so that the end of the child ends the pipe
    if not is_running:
        receiver.close()
        yield work
        return

    def result() -> T:
        before = -1
        while not receiver.poll(STALL_S):
            before, last = _processor_ticks(child.pid), before
            if before == last:
                child.kill()
                return work()
        try:
            received: T = receiver.recv()
        except (EOFError, OSError):  # it died before or within its answer
            return work()
        return received

    try:
        with receiver:
            yield result
    finally:
        child.kill()
        child.join()
        child.close()


def _start(child: ForkProcess) -> bool:
    """Fork a child; return whether the system had room for it."""
    for stream in filter(None, (sys.__stdout__, sys.__stderr__)):
        stream.flush()  # or the child would write it a second time
    collects_garbage = gc.isenabled()
    gc.disable()  # until the child has frozen the objects of this process
    try:
        with warnings.catch_warnings():
            # of Python 3.12 and later, for the idle threads of libraries too
            warnings.filterwarnings("ignore", ".*multi-threaded", DeprecationWarning)
            child.start()
    except OSError:  # of fork(2): too many processes, or too little memory
        return False
    finally:
        if collects_garbage:
            gc.enable()
    return True


def _send_result(work: Callable[[], T], sender: Connection) -> None:
    """Be the child: do the work, and end without a word where it fails."""
    # Garbage of the parent stays: the end of a session of ONNX Runtime waits for its threads, which
    # a fork does not copy.
    gc.freeze()
    gc.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: this process is killed by its parent
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # a progress bar may hold their lock
    try:
        sender.send(work())
    except Exception as error:
        raise SystemExit(1) from error


def _processor_ticks(pid: int | None) -> int:
    """Return the processor time of a process in clock ticks (proc(5): utime and stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])

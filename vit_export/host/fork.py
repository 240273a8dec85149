"""Do work in a forked child process while this process goes on.

A fork shares the memory of this process, so nothing is loaded or copied twice. Only Linux forks
safely; elsewhere the work is done in this process.
"""

import contextlib
import multiprocessing
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def forked(work: Callable[[], T], *, allowed: bool = True) -> Iterator[Callable[[], T]]:
    """Start work in a child; yield a function that waits for its result, which is pickled.

    Where the child raises or dies, that function does the work again in this process, so that an
    error is the same with and without a child. It does all of it where no child can be forked:
    outside the main thread, as other threads may hold locks; in a daemon of `multiprocessing`; and
    where it is not `allowed`. A child that still works when the context ends is killed.
    """
    main = threading.current_thread() is threading.main_thread()
    daemon = multiprocessing.current_process().daemon
    if sys.platform != "linux" or not main or daemon or not allowed:
        yield work
        return
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send_result, args=(work, sender), daemon=True)
    with warnings.catch_warnings():
        # of Python 3.12 and later, for the idle threads of libraries too
        warnings.filterwarnings("ignore", ".*multi-threaded", DeprecationWarning)
        child.start()
    sender.close()  # so that the end of the child ends the pipe

    def result() -> T:
        try:
            received: T = receiver.recv()
        except EOFError:
            return work()
        return received

    try:
        with receiver:
            yield result
    finally:
        child.kill()
        child.join()
        child.close()


def _send_result(work: Callable[[], T], sender: Connection) -> None:
    """Be the child: do the work, and end without a word where it fails."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: this process is killed by its parent
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # a progress bar may hold their lock
    try:
        sender.send(work())
    except Exception as error:
        raise SystemExit(1) from error

"""Work runs in a forked child or in this process, with the same result and the same errors."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from vit_export.errors import ExportError
from vit_export.host import fork
from vit_export.host.fork import forked

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks")


@LINUX
def test_work_runs_in_a_child_that_shares_the_memory_of_this_process():
    """An object that cannot be pickled is no obstacle."""
    unpicklable = threading.Lock()
    with forked(lambda: (os.getpid(), unpicklable.locked())) as result, unpicklable:
        child, locked = result()
    assert child != os.getpid()
    assert not locked


@LINUX
def test_this_process_goes_on_meanwhile():
    """The result is waited for where it is asked for."""

    def work() -> float:
        time.sleep(0.2)
        return time.monotonic()

    with forked(work) as result:
        here = time.monotonic()
        assert here < result()


def test_an_error_is_raised_as_without_a_child():
    """With its hint, its cause and its traceback."""

    def fail() -> None:
        try:
            raise ZeroDivisionError("why")
        except ZeroDivisionError as error:
            raise ExportError("no", hint="do this") from error

    with forked(fail) as result, pytest.raises(ExportError, match="no") as caught:
        result()
    assert caught.value.hint == "do this"
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_work_of_a_child_that_dies_is_done_here():
    """As when the system kills it for its memory."""
    parent = os.getpid()

    def die() -> str:
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return "done"

    with forked(die) as result:
        assert result() == "done"


def test_work_of_a_child_that_dies_within_its_answer_is_done_here():
    """An answer that is larger than a pipe is written while the parent reads."""
    parent = os.getpid()

    def die_soon() -> bytes:
        if os.getpid() != parent:
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return bytes(1 << 20)

    with forked(die_soon) as result:
        time.sleep(1)
        assert result() == bytes(1 << 20)


def test_work_is_done_here_where_no_process_can_be_started(monkeypatch):
    """As under a limit of processes, or without memory for another one."""

    def refused() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refused)
    with forked(os.getpid) as result:
        assert result() == os.getpid()
    assert gc.isenabled()


@LINUX
def test_what_is_printed_before_appears_once():
    """A pipe is written when its buffer is full, and a fork copies the buffer."""
    code = """if True:
        import contextlib, io, os
        from vit_export.host.fork import forked

        print("before")
        with contextlib.redirect_stdout(io.StringIO()), forked(os.getpid) as result:
            result()
    """
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout == "before\n"


def test_work_of_a_child_that_stalls_is_done_here(monkeypatch):
    """As one that waits for a lock which a thread of this process held when it was forked."""
    monkeypatch.setattr(fork, "STALL_S", 0.2)
    parent = os.getpid()
    with forked(lambda: "done" if os.getpid() == parent else time.sleep(600)) as result:
        assert result() == "done"


@LINUX
def test_a_child_that_computes_is_waited_for(monkeypatch):
    """However long it takes."""
    monkeypatch.setattr(fork, "STALL_S", 0.2)

    def compute() -> int:
        ends = time.process_time() + 1
        while time.process_time() < ends:
            pass
        return os.getpid()

    with forked(compute) as result:
        assert result() != os.getpid()


@LINUX
def test_a_child_is_killed_where_its_result_is_no_longer_wanted(tmp_path):
    """It would go on writing into a folder that is removed."""
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), forked(lambda: time.sleep(60)):
        raise KeyboardInterrupt
    assert time.monotonic() - started < 30


def test_nothing_is_forked_where_that_is_not_safe():
    """In a thread of a server, whose other threads may hold locks, and after CUDA was started."""
    found: list[int] = []

    def in_thread() -> None:
        with forked(os.getpid) as result:
            found.append(result())

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    with forked(os.getpid, allowed=False) as result:
        found.append(result())
    assert found == [os.getpid()] * 2


@LINUX
def test_ctrl_c_is_left_to_the_parent():
    """The terminal sends it to both."""

    def work() -> str:
        os.kill(os.getpid(), signal.SIGINT)
        return "went on"

    with forked(work) as result:
        assert result() == "went on"


@LINUX
@pytest.mark.parametrize("collects", [True, False])
def test_garbage_of_this_process_is_not_collected_in_the_child(collects):
    """The end of a session of ONNX Runtime would wait there for threads that do not exist."""
    ended = []

    class Session:
        def __del__(self):
            ended.append(os.getpid())

    def work() -> tuple[list[int], bool]:
        gc.collect()
        return [*ended], gc.isenabled()

    gc.disable()
    try:
        session = Session()
        session.itself = session  # a cycle
        del session
        if collects:
            gc.enable()
        with forked(work) as result:
            assert gc.isenabled() is collects
            assert result() == ([], True)
    finally:
        gc.enable()
    gc.collect()
    assert ended == [os.getpid()]

"""Workers answer orders, raise this package's errors, or die; children import no local files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vit_export.errors import UsageError
from vit_export.host.child_process import Worker, WorkerError, run_module

ROOT = Path(__file__).parents[2]
WORKER = """
import os, signal, sys, time
from vit_export.host.child_process import answer_orders
from vit_export.errors import ArtifactError, UsageError

def refuse(why):
    raise {"usage": UsageError, "file": ArtifactError}[why]("no", hint=why)

def print_and_answer(number):
    print("a library prints this")
    os.system("echo and this")
    return {"twice": 2 * number}

def crash(number):
    os.kill(os.getpid(), signal.SIGSEGV)

def raise_foreign(number):
    raise ZeroDivisionError("a mistake of a library")

def sleep():
    time.sleep(30)

def main():
    answer_orders({"refuse": refuse, "print": print_and_answer, "crash": crash,
                   "raise": raise_foreign, "sleep": sleep})
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """A worker whose module is found through this process's sys.path."""
    (tmp_path / "worker_module.py").write_text(WORKER)
    monkeypatch.syspath_prepend(tmp_path)
    with Worker("worker_module") as worker:
        yield worker


def test_printed_lines_do_not_mix_with_answers(worker):
    assert [worker.ask("print", number=n) for n in (1, 2)] == [{"twice": 2}, {"twice": 4}]
    assert worker.log() == ["a library prints this", "and this"] * 2


def test_errors_of_the_package_are_raised_in_the_parent_and_the_worker_lives_on(worker):
    with pytest.raises(UsageError) as usage:
        worker.ask("refuse", why="usage")
    assert (usage.value.message, usage.value.hint) == ("no", "usage")
    with pytest.raises(WorkerError, match="no\nhint: file"):
        worker.ask("refuse", why="file")
    assert worker.poll() is None
    assert worker.ask("print", number=5) == {"twice": 10}


def test_a_worker_that_hangs_is_killed(worker):
    assert worker.ask("print", number=1, timeout_s=60) == {"twice": 2}
    with pytest.raises(WorkerError, match=r"no answer within 0\.5 s"):
        worker.ask("sleep", timeout_s=0.5)
    assert worker.poll() is not None


@pytest.mark.parametrize(
    ("order", "cause"), [("crash", "SIGSEGV"), ("raise", "a mistake of a library")]
)
def test_a_crash_is_reported_with_its_cause(worker, order, cause):
    """Also by every later order."""
    for later_order in (order, "print"):
        with pytest.raises(WorkerError, match=cause):
            worker.ask(later_order, number=1)
    assert worker.poll() is not None


@pytest.fixture
def folder_with_json(tmp_path, monkeypatch) -> Path:
    """The current folder, with a file that has a library's name."""
    (tmp_path / "json.py").write_text("raise SystemExit('the json.py of the current folder')")
    monkeypatch.chdir(tmp_path)
    return tmp_path


RUN_PROBE = (
    "import sys; sys.path[:1] == [''] and sys.path.pop(0)\n"
    "from vit_export.host.probes import probe_nvidia, run_probe\n"
    "sys.path.insert(0, {first!r})\n"
    "answer = run_probe(probe_nvidia)\n"
    "print(answer)\n"
    "sys.exit('json.py' in str(answer))\n"
)


@pytest.mark.parametrize("first", ["", "current folder"])
def test_a_file_named_json_py_in_the_current_folder_breaks_no_child(folder_with_json, first):
    """Not with `python -c` or a notebook ('' on sys.path), nor `python -m` (the folder itself)."""
    code = RUN_PROBE.format(first=str(folder_with_json) if first else "")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_users_pythonpath_counts_even_where_it_is_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "module_of_the_user.py").write_text("def main(): print('imported')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert "No module named" in run_module("module_of_the_user").stderr
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert run_module("module_of_the_user").stdout == "imported\n"


# pyenv's own `python3.10` on the PATH fails where another version is chosen.
PYTHON_310 = next(Path.home().glob(".pyenv/versions/3.10.*/bin/python"), None) or shutil.which(
    "python3.10"
)


@pytest.mark.skipif(PYTHON_310 is None, reason="there is no Python 3.10 here")
def test_python_3_10_starts_children_without_the_current_folder(folder_with_json):
    """PYTHONSAFEPATH came with 3.11; the probe needs the standard library only."""
    code = RUN_PROBE.format(first=str(folder_with_json))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [str(PYTHON_310), "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

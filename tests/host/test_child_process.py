"""A child answers, refuses in words, or dies and is heard."""

from __future__ import annotations

import pytest

from vit_export.errors import BenchmarkError, UsageError
from vit_export.host.child_process import Child

SERVANT = """
import os, signal, time
from vit_export.host.child_process import answer_orders
from vit_export.errors import ArtifactError, UsageError

def refuse(order):
    raise {"usage": UsageError, "file": ArtifactError}[order["why"]]("no: " + order["why"])

def chatter(order):
    print("a backend prints this")
    os.system("echo and this")
    return {"twice": 2 * order["number"]}

def fall(order):
    os.kill(os.getpid(), signal.SIGSEGV)

def raise_foreign(order):
    raise ZeroDivisionError("a mistake of a library")

def sleep(order):
    time.sleep(30)

def main():
    answer_orders({"refuse": refuse, "chatter": chatter, "fall": fall, "raise": raise_foreign,
                   "sleep": sleep})
"""


@pytest.fixture
def child(tmp_path, monkeypatch):
    """A child of a module that lies in a folder on the path."""
    (tmp_path / "servant.py").write_text(SERVANT)
    monkeypatch.syspath_prepend(tmp_path)
    with Child("servant") as child:
        yield child


def test_answers_stay_alone_whatever_a_backend_prints(child):
    """Order after order; what is printed goes elsewhere."""
    assert [child.ask("chatter", number=n) for n in (1, 2)] == [{"twice": 2}, {"twice": 4}]


def test_a_refusal_is_an_error_and_the_child_lives_on(child):
    """With its kind: wrong usage stays wrong usage."""
    with pytest.raises(UsageError, match="no: usage"):
        child.ask("refuse", why="usage")
    with pytest.raises(BenchmarkError, match="no: file"):
        child.ask("refuse", why="file")
    assert child.alive
    assert child.ask("chatter", number=5) == {"twice": 10}


def test_a_child_that_hangs_is_ended(child):
    """So that its order does not wait for ever."""
    assert child.ask("chatter", number=1, timeout_s=60) == {"twice": 2}
    with pytest.raises(BenchmarkError, match=r"gave no answer for 0\.5 s"):
        child.ask("sleep", timeout_s=0.5)
    assert not child.alive


@pytest.mark.parametrize(
    ("order", "words"), [("fall", "SIGSEGV"), ("raise", "a mistake of a library")]
)
def test_a_crash_is_told_with_its_last_words(child, order, words):
    """The parent goes on, and a dead child is asked no more."""
    with pytest.raises(BenchmarkError, match=words):
        child.ask(order)
    assert not child.alive
    with pytest.raises(BenchmarkError, match=words):
        child.ask("chatter", number=1)

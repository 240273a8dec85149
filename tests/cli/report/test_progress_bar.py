"""Progress of long work on a terminal and in a log."""

from __future__ import annotations

import io
import re

import pytest

from vit_export.cli.report.progress_bar import TerminalProgress
from vit_export.cli.report.training import EpochLines
from vit_export.training.history import EpochRecord
from vit_export.training.loop import EpochProgress


class Terminal(io.StringIO):
    """A stream that reports to be a terminal."""

    def isatty(self) -> bool:
        return True


def run_stages(stream: io.StringIO) -> str:
    progress = TerminalProgress(stream)
    progress("load")
    progress("torch [x]", 1, 4)
    progress("torch [x]", 4, 4)
    progress.line("a line that stays")
    progress.close()
    return stream.getvalue()


def test_a_log_gets_one_line_per_stage():
    assert run_stages(io.StringIO()) == "load\ntorch [x]\na line that stays\n"


def test_a_terminal_gets_a_bar_that_is_removed_at_the_end(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    shown = run_stages(Terminal())
    assert "torch [x]" in shown
    assert "4/4" in shown
    assert "a line that stays\n" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert shown.endswith("\x1b[1A\x1b[2K")  # one line up, erased


def test_no_color_leaves_the_bar_without_colours(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in run_stages(Terminal())


def test_a_terminal_that_cannot_redraw_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert run_stages(Terminal()) == run_stages(io.StringIO())


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["log", "terminal"])
def test_training_shows_a_line_per_epoch(stream, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    progress = TerminalProgress(stream)
    show = EpochLines(progress)
    record = EpochRecord(
        epoch=1, learning_rate=1e-3, train_loss=0.5, train_accuracy=0.75, val_loss=0.25,
        val_accuracy=0.9, time_s=2.0,
    )  # fmt: skip
    step = EpochProgress(epoch=1, epochs=3, step=1, steps=2, loss=0.5, accuracy=0.75)
    show(step)
    show(EpochProgress(**{**vars(step), "finished": record}))
    progress.close()
    line = "epoch 1/3  loss 0.5000  val loss 0.2500  val accuracy 90.00 %  2.0 s\n"
    if progress.live:
        assert "accuracy 75.0 %" in stream.getvalue()
        assert line in stream.getvalue()
    else:
        assert stream.getvalue() == line

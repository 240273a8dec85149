"""scripts/precisions: what it allows, and what it says of a command that crashed."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "precisions"


@pytest.fixture(scope="module")
def script() -> dict:
    """What the script defines, without its run."""
    return runpy.run_path(str(SCRIPT))


def test_a_small_file_may_hold_its_graph_and_a_large_one_its_share(script):
    """The limits are of weights; a graph that is not narrowed is most of what the digits add."""
    limit = script["LIMITS"]["int8"]
    assert script["too_large"](801_200, 2_750_000, limit) == ""
    assert script["too_large"](23_840_000, 88_300_000, limit) == ""
    assert "allowed 23841000" in script["too_large"](23_850_000, 88_300_000, limit)


def test_a_command_that_crashes_is_shown_with_what_it_said(script, tmp_path, monkeypatch):
    """An answer in JSON, an error too, is handed on."""
    assert "did you mean" in script["command"]("onnx", "--variant", "mnits")["error"]
    crashing = tmp_path / "python"
    crashing.write_text("#!/bin/sh\necho 'out of memory' >&2\nexit 3\n")
    crashing.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crashing))
    with pytest.raises(SystemExit, match="exit status 3\nout of memory"):
        script["command"]("quantize", "b16.onnx")

"""`vit-export bench`, for real."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from vit_export.cli import main

QUICK = ("--rounds", "2", "--min-time", "0.02", "--warmup", "0")


def call(*arguments: str | Path) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


def last_json(result: Result) -> dict:
    """The last line of standard output."""
    return json.loads(result.stdout.splitlines()[-1])


def test_a_table_a_picture_and_json(tiny_export, tmp_path):
    """All from one run; the machine is named first."""
    picture = tmp_path / "out.png"
    arguments = (tiny_export.path, "--batch", "1,2", "--threads", "1", "--plot", picture, *QUICK)
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    data = last_json(result)
    assert data["machine"]["versions"]["onnxruntime"]
    assert data["threads"] == 1
    assert [(row["batch"], row["provider"]) for row in data["rows"]] == [(1, "cpu"), (2, "cpu")]
    assert all(row["median_ms"] > 0 and row["peak_rss_bytes"] > 0 for row in data["rows"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    text = call(*arguments)
    assert text.exit_code == 0, text.output
    assert text.stdout.splitlines()[0].startswith(data["machine"]["processor"])
    assert "tiny.onnx  cpu" in text.stdout


def test_a_candidate_that_cannot_run_fails_the_command_and_not_the_others(tiny_export):
    """Exit status 1, with the row's reason and the other row's time."""
    result = call(tiny_export.path, "--provider", "cpu,cuda", *QUICK, "--json")
    assert result.exit_code == 1
    data = last_json(result)
    assert data["error"] == "did not run: tiny.onnx on cuda"
    cpu, cuda = data["rows"]
    assert cpu["median_ms"] > 0
    assert (cuda["median_ms"], cuda["provider"]) == (None, "cuda")
    assert "NOT RUN" in result.stderr


@pytest.mark.parametrize(
    ("status", "arguments", "words"),
    [
        (2, ["--batch", "1,x"], "--batch 1,x: expected whole numbers"),
        (2, ["--batch", "0"], "expected whole numbers"),
        (2, ["--provider", "cudda"], "did you mean 'cuda'"),
        (2, ["--against", "torhc"], "did you mean 'torch'"),
        (2, ["--against", "torch"], "--weights FILE"),
        (2, ["--plot", "out.jpg"], "must end in .png"),
        (1, ["--plot", "none/out.png"], "no folder"),
        (1, ["missing.onnx"], "no such file"),
    ],
    ids=str,
)
def test_a_wrong_turn_is_answered_in_words(
    tiny_export, tmp_path, monkeypatch, status, arguments, words
):
    """In text and in JSON, leaving nothing."""
    monkeypatch.chdir(tmp_path)
    result = call(tiny_export.path, *arguments, "--json")
    assert result.exit_code == status, result.output
    assert words in last_json(result)["error"]
    assert words in result.stderr
    assert not list(tmp_path.iterdir())


def test_matplotlib_is_asked_for_before_anything_is_timed(tiny_export, tmp_path, monkeypatch):
    """And only where a picture is wanted."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "vit_export.report.plot_style", raising=False)
    result = call(tiny_export.path, "--plot", tmp_path / "out.png", *QUICK)
    assert result.exit_code == 1
    assert "pip install 'vit-export[bench]'" in result.stderr
    assert "time," not in result.stderr
    assert call(tiny_export.path, *QUICK).exit_code == 0

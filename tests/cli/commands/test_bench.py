"""`vit-export bench`, for real."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper

from vit_export.cli.main import main

QUICK = ("--rounds", "2", "--min-time", "0.02", "--warmup", "0")


@pytest.fixture
def damaged(tiny_export, tmp_path) -> Path:
    """The tiny artifact with one weight matrix 1 % off, beside its golden file."""
    path = tmp_path / tiny_export.path.name
    model = onnx.load(tiny_export.path)
    weight = next(t for t in model.graph.initializer if t.name == "blocks.0.mlp.fc1.weight")
    values = numpy_helper.to_array(weight) * np.float32(1.01)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)
    shutil.copy(tiny_export.golden, tmp_path)
    return path


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
    assert f"picture: {picture}" in text.stdout
    assert data["busy"] in (True, False)


def test_a_candidate_that_cannot_run_fails_the_command_and_not_the_others(tiny_export, tmp_path):
    """Exit status 1, with the row's reason and the other row's time; the picture shows that one."""
    arguments = ("--provider", "cpu,cuda", "--plot", tmp_path / "out.png", *QUICK)
    result = call(tiny_export.path, *arguments, "--json")
    assert result.exit_code == 1
    data = last_json(result)
    assert data["error"] == "did not run: tiny.onnx on cuda"
    cpu, cuda = data["rows"]
    assert cpu["median_ms"] > 0
    assert (cuda["median_ms"], cuda["provider"]) == (None, "cuda")
    assert "NOT RUN" in result.stderr
    assert "\nnot in the picture: tiny.onnx on cuda, batch 1\n" in result.stderr


def test_an_artifact_outside_its_gate_fails_the_command(damaged):
    """It keeps its time, in a table that says so."""
    result = call(damaged, "--provider", "cpu", *QUICK, "--json")
    assert result.exit_code == 1, result.output
    data = last_json(result)
    assert data["error"] == "outside its gate: tiny.onnx on cpu"
    assert data["rows"][0]["median_ms"] > 0
    assert data["rows"][0]["accepted"] is False
    assert " FAILED\n" in result.stderr


def test_a_picture_that_cannot_be_written_costs_no_row(tiny_export, tmp_path, monkeypatch):
    """A full or strange disk is noticed when all is measured."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", refuse)
    result = call(tiny_export.path, "--plot", tmp_path / "out.png", *QUICK, "--json")
    assert result.exit_code == 1
    data = last_json(result)
    assert data["rows"][0]["median_ms"] > 0
    assert "No space left" in data["error"]
    assert "\npicture:" not in result.stderr


def test_an_earlier_picture_stays_where_there_is_nothing_to_show(tiny_export, tmp_path):
    """Without golden no row has a distance."""
    alone = shutil.copy(tiny_export.path, tmp_path)
    picture = tmp_path / "out.png"
    picture.write_bytes(b"earlier")
    result = call(alone, "--plot", picture, *QUICK, "--json")
    assert result.exit_code == 1
    assert "no row has both a time and a distance" in last_json(result)["error"]
    assert picture.read_bytes() == b"earlier"


@pytest.mark.parametrize(
    ("status", "arguments", "words"),
    [
        (2, ["--batch", "1,x"], "--batch 1,x: expected whole numbers"),
        (2, ["--batch", "0"], "expected whole numbers"),
        (2, ["--provider", "cudda"], "did you mean 'cuda'"),
        (2, ["--against", "torhc"], "did you mean 'torch'"),
        (2, ["--against", "torch"], "--weights FILE"),
        (2, ["--provider", ","], "expected at least one"),
        (2, ["--provider", "cpu,auto"], "leave auto out, or give it alone"),
        (2, ["--layout", "timm"], "--weights FILE"),
        (2, ["--plot", "out.jpg"], "must end in .png"),
        (1, ["--plot", "none/out.png"], "no folder"),
        (1, ["missing.onnx"], "no such file"),
    ],
    ids=str,
)
def test_wrong_usage_is_an_error_in_text_and_json(
    tiny_export, tmp_path, monkeypatch, status, arguments, words
):
    """No file is left behind."""
    monkeypatch.chdir(tmp_path)
    result = call(tiny_export.path, *arguments, "--json")
    assert result.exit_code == status, result.output
    data = last_json(result)
    assert words in f"{data['error']} {data.get('hint')}"
    assert words in result.stderr
    assert not list(tmp_path.iterdir())


def test_matplotlib_is_asked_for_before_anything_is_timed(tiny_export, tmp_path, monkeypatch):
    """And only where a picture is wanted."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = call(tiny_export.path, "--plot", tmp_path / "out.png", *QUICK)
    assert result.exit_code == 1
    assert "pip install 'vit-export[bench]'" in result.stderr
    assert "time," not in result.stderr
    assert call(tiny_export.path, *QUICK).exit_code == 0

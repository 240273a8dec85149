"""The finetune command for real, on a model and data so small that it takes seconds."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import re
import shutil
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
from click.testing import CliRunner, Result
from PIL import Image

from vit_export.checkpoint.load import load_checkpoint
from vit_export.cli.commands import finetune as command
from vit_export.cli.console import ProgressBar
from vit_export.cli.main import main
from vit_export.training import run as training

SMALL = ("--set", "embed_dim=32", "--set", "depth=1", "--set", "num_heads=2")


def finetune(*arguments: str | Path) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(main, ["finetune", *map(str, arguments)])


def last_json(result: Result) -> dict:
    """The last line of standard output."""
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 scanned digits of 8 x 8 px with labels; `test.csv` beside it has 30 more without."""
    folder = tmp_path_factory.mktemp("digits")
    images, targets = sklearn.datasets.load_digits(return_X_y=True)
    pixels = np.round(images * 255 / 16).astype(int)
    names = [f"pixel{i}" for i in range(64)]
    with (folder / "digits.csv").open("w", newline="") as file:
        rows = [[t, *row] for t, row in zip(targets[:200], pixels[:200], strict=True)]
        csv.writer(file).writerows([["label", *names], *rows])
    with (folder / "test.csv").open("w", newline="") as file:
        csv.writer(file).writerows([names, *pixels[200:230]])
    return folder / "digits.csv"


@pytest.fixture(scope="module")
def shades(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of ten small pictures."""
    folder = tmp_path_factory.mktemp("shades")
    rng = np.random.default_rng(0)
    for label, level in (("dark", 60), ("light", 190)):
        (folder / label).mkdir()
        for number in range(10):
            pixels = rng.integers(level - 30, level + 30, (12, 12), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """A checkpoint of two epochs on the digits, as the command leaves it; do not change it."""
    output = tmp_path_factory.mktemp("trained") / "digits.safetensors"
    result = finetune("--variant", "mnist", "--data", digits, *SMALL, "--epochs", "2",
                      "-o", output)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert f"next: vit-export onnx --weights {output}" in result.stdout
    return output


def test_without_a_name_the_checkpoint_is_called_as_the_variant(digits, tmp_path, monkeypatch):
    """The JSON names every file and the epochs; text goes to standard error."""
    monkeypatch.chdir(tmp_path)
    result = finetune("--variant", "mnist", "--data", digits, *SMALL, "--epochs", "2", "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["files"]["checkpoint"] == "vit_mnist_28.safetensors"
    assert [epoch["epoch"] for epoch in data["history"]] == [1, 2]
    assert data["best"] in data["history"]
    assert data["stopped_early"] is False
    assert data["predictions"] is None
    there = {path.name for path in tmp_path.iterdir()}
    assert there == set(data["files"].values()) - {data["files"]["best"]}
    assert "validation images correct" in result.stderr


def test_predictions_of_a_test_file_are_a_submission(digits, tmp_path):
    """One `ImageId,Label` per row, counted from 1."""
    output = tmp_path / "m.safetensors"
    result = finetune("--variant", "mnist", "--data", digits, *SMALL, "--epochs", "1",
                      "--predict", digits.parent / "test.csv", "-o", output, "--json")  # fmt: skip
    assert result.exit_code == 0, result.output
    path = Path(last_json(result)["predictions"])
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["ImageId", "Label"]
    assert [row[0] for row in rows] == [str(number) for number in range(1, 31)]
    assert {row[1] for row in rows} <= set("0123456789")


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_stopped_run_says_to_resume_and_ends_as_an_unbroken_one(
    digits, trained, tmp_path, monkeypatch, number, status, word
):
    """The signal is a real one; the resumed run gives the same weights to the byte."""
    output = tmp_path / "digits.safetensors"
    arguments = ("--variant", "mnist", "--data", digits, *SMALL, "--epochs", "2", "-o", output)
    whole = training.train

    def stopped(*positional, **options):
        def progress(stage, done=0, total=0):
            if stage.startswith("epoch 2/"):
                os.kill(os.getpid(), number)

        return whole(*positional, **{**options, "progress": progress})

    monkeypatch.setattr(training, "train", stopped)
    result = finetune(*arguments, "--json")
    assert result.exit_code == status
    state = tmp_path / "digits.state.pt"
    assert last_json(result) == {
        "error": f"{word}; {state} holds the finished epochs, resume with --resume"
    }
    assert not output.exists()
    first = json.loads((tmp_path / "digits.history.jsonl").read_text())
    monkeypatch.setattr(training, "train", whole)
    result = finetune(*arguments, "--resume", "--json")
    assert result.exit_code == 0, result.output
    resumed = last_json(result)["history"]
    assert len(resumed) == 2
    assert resumed[0] == first  # its seconds too: the epoch was not trained again
    assert output.read_bytes() == trained.read_bytes()


def test_a_run_stopped_in_its_first_epoch_says_that_nothing_was_saved(
    digits, tmp_path, monkeypatch
):
    """The state of an earlier run is not taken for this one's."""

    def stopped(*positional, **options):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(training, "train", stopped)
    (tmp_path / "m.state.pt").write_bytes(b"of an earlier run")
    os.utime(tmp_path / "m.state.pt", (1, 1))
    output = tmp_path / "m.safetensors"
    result = finetune("--variant", "mnist", "--data", digits, *SMALL, "-o", output)
    assert result.exit_code == 143
    assert "terminated; no epoch was finished, so nothing was saved" in result.stderr
    assert "resume" not in result.stderr


def test_without_matplotlib_everything_but_the_curve_is_written(digits, tmp_path, monkeypatch):
    """The text says why, and what to install."""
    find_spec = importlib.util.find_spec

    def without_matplotlib(name: str, package: str | None = None) -> object:
        return None if name == "matplotlib" else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without_matplotlib)
    output = tmp_path / "m.safetensors"
    result = finetune("--variant", "mnist", "--data", digits, *SMALL, "--epochs", "1",
                      "-o", output, "--json")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "pip install 'vit-export[bench]'" in result.stderr
    assert last_json(result)["files"]["curve"] is None
    assert output.is_file()


def test_other_classes_need_a_new_head(trained, shades, tmp_path, monkeypatch):
    """Without --reset-head an error that names it; with it the classes are those of the data."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(trained, tmp_path / "model.safetensors")
    before = Path("model.safetensors").read_bytes()
    arguments = ("--weights", "model.safetensors", "--data", shades, "--epochs", "1")
    result = finetune(*arguments)
    assert result.exit_code == 2, result.output
    assert "10 classes, the data 2" in result.stderr
    assert "--reset-head" in result.stderr
    result = finetune(*arguments, "--reset-head", "--json")
    assert result.exit_code == 0, result.output
    data = last_json(result)
    assert data["files"]["checkpoint"] == "model.finetuned.safetensors"
    assert data["report"]["reinitialised"] == ["head.weight", "head.bias"]
    assert Path("model.safetensors").read_bytes() == before
    loaded = load_checkpoint("model.finetuned.safetensors")
    assert loaded.labels == ("dark", "light")
    assert loaded.config.embed_dim == 32


def test_the_weights_are_never_the_output(trained, digits, tmp_path):
    """Refused as wrong usage; the file stays as it is."""
    weights = tmp_path / "model.safetensors"
    shutil.copy(trained, weights)
    for source in (weights, tmp_path):
        result = finetune("--weights", source, "--data", digits, "-o", weights)
        assert result.exit_code == 2, result.output
        assert "would replace" in result.stderr
    assert weights.read_bytes() == trained.read_bytes()


def test_a_trained_checkpoint_has_the_architecture_and_the_labels(trained):
    """So that `onnx --weights` needs no other option."""
    loaded = load_checkpoint(trained)
    assert loaded.labels == tuple("0123456789")
    assert loaded.model.config.embed_dim == 32


WRONG = [
    (2, ["--data", "."], "nothing to train"),
    (1, ["--variant", "mnist", "--data", "none.csv"], "none.csv does not exist"),
    (2, ["--variant", "mnst", "--data", "."], "did you mean 'mnist'"),
    (2, ["--variant", "mnist", "--data", ".", "--device", "gpu"], "expected auto, cpu, cuda"),
    (1, ["--variant", "mnist", "--data", ".", "--device", "cuda:99"], "cannot train on cuda:99"),
    (2, ["--variant", "mnist", "--data", ".", "-o", "m.pt"], "ends in .safetensors"),
    (2, ["--variant", "mnist", "--data", ".", "--resume"], "cannot resume"),
    (2, ["--variant", "mnist", "--data", ".", "--epochs", "0"], "must be at least 1"),
    (2, ["--variant", "mnist", "--data", ".", "--reset-head"], "needs --weights"),
    (2, ["--variant", "mnist", "--data", ".", "--set", "num_classes=3"], "comes from the data"),
    (1, ["--variant", "mnist", "--data", "."], "expected one folder of images"),
    (2, ["--variant", "mnist"], "--data"),
]


@pytest.mark.parametrize(("status", "arguments", "words"), WRONG, ids=lambda v: str(v)[-40:])
def test_wrong_usage_is_an_error_message(status, arguments, words, tmp_path, monkeypatch):
    """In text and in JSON, with the right status, without a traceback, leaving nothing."""
    monkeypatch.chdir(tmp_path)
    result = finetune(*arguments)
    assert result.exit_code == status, result.output
    assert words in result.stderr
    in_json = finetune(*arguments, "--json")
    assert in_json.exit_code == status
    assert words in last_json(in_json)["error"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("terminal", [False, True])
def test_training_shows_a_line_per_epoch(terminal, digits, tmp_path, monkeypatch):
    """And on a terminal a bar with the loss and accuracy of the steps."""
    monkeypatch.setenv("TERM", "xterm" if terminal else "dumb")
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(command, "ProgressBar", partial(ProgressBar, stream))
    output = tmp_path / "m.safetensors"
    result = finetune("--variant", "mnist", "--data", digits, *SMALL, "--epochs", "1",
                      "-o", output)  # fmt: skip
    assert result.exit_code == 0, result.output
    shown = stream.getvalue()
    line = r"epoch 1/1  loss \d\.\d{4}  val loss \d\.\d{4}  val accuracy \d+\.\d\d %  \d+\.\d s\n"
    assert re.search(line, shown)
    assert bool(re.search(r"epoch 1/1  loss \d\.\d{4}  accuracy \d+\.\d %", shown)) == terminal
    assert terminal or len(shown.splitlines()) == 2

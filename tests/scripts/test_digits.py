"""The digits model in the repository, and the scripts that make and show it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vit_export.artifact.preprocess import Preprocess
from vit_export.checkpoint.load import Loaded, load_checkpoint
from vit_export.images.prepare import normalize
from vit_export.pipeline.export import ExportResult, export
from vit_export.pipeline.quantize import quantize
from vit_export.quantization.settings import QuantizeSettings
from vit_export.runtime import load
from vit_export.training.predict import predict_logits

SCRIPTS = Path(__file__).parents[2] / "scripts"
DIGITS = SCRIPTS / "digits"


@pytest.fixture(scope="module")
def data():
    """scripts/digits/data.py as a module."""
    sys.path.insert(0, str(DIGITS))
    try:
        import data

        return data
    finally:
        sys.path.remove(str(DIGITS))


@pytest.fixture(scope="module")
def checkpoint() -> Loaded:
    """The digits model in the repository."""
    return load_checkpoint(DIGITS / "digits.safetensors")


@pytest.fixture(scope="module")
def unseen_scans(data) -> tuple[np.ndarray, np.ndarray]:
    """Scans that no training saw, uint8 (359, 28, 28, 1), and their digits."""
    scans, targets = data.load_scans()
    _, test = data.split(targets)
    return scans[test][..., None], targets[test]


@pytest.fixture(scope="module")
def by_torch(checkpoint, unseen_scans) -> np.ndarray:
    """Torch's classes of the test scans."""
    return predict_logits(checkpoint.model, unseen_scans[0], batch_size=64).argmax(dim=1).numpy()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    """The model exported as ONNX."""
    path = tmp_path_factory.mktemp("digits") / "digits.onnx"
    return export(output=path, weights=DIGITS / "digits.safetensors")


def classes(path: Path, scans: np.ndarray, preprocess: Preprocess, batch: int) -> np.ndarray:
    """An artifact's class of each scan, computed in batches."""
    pixels = normalize(scans, preprocess)
    with load(path, provider="cpu") as model:
        chunks = [pixels[i : i + batch] for i in range(0, len(pixels), batch)]
        return np.concatenate([model.run(chunk).argmax(axis=1) for chunk in chunks])


def test_the_model_in_the_repository_has_its_recorded_accuracy(checkpoint, unseen_scans, by_torch):
    """The figure of the README, on scans that no training saw; the file is small."""
    recorded = json.loads((DIGITS / "accuracy.json").read_text(encoding="utf-8"))
    assert [result["seed"] for result in recorded] == [1, 2, 3]
    correct = int((by_torch == unseen_scans[1]).sum())
    assert (correct, len(by_torch)) == (recorded[0]["correct"], recorded[0]["tested"])
    assert min(result["correct"] / result["tested"] for result in recorded) >= 0.96
    assert checkpoint.labels == tuple("0123456789")
    assert (DIGITS / "digits.safetensors").stat().st_size < 1_000_000


def test_learning_and_testing_share_no_scan(data):
    """Every scan is in one part, and every digit gives a fifth of its scans to the test."""
    _, targets = data.load_scans()
    learn, test = data.split(targets)
    assert sorted([*learn, *test]) == list(range(1797))
    shares = np.bincount(targets[test]) / np.bincount(targets)
    assert np.abs(shares - 0.2).max() < 0.01


@pytest.fixture(scope="module")
def examples(checkpoint) -> tuple[list[Path], list[int]]:
    """The scans that scripts/quickstart shows, and torch's classes of them."""
    scans = [DIGITS / "scans" / f"{digit}.png" for digit in range(10)]
    pixels = np.stack([np.asarray(Image.open(scan))[..., None] for scan in scans])
    logits = predict_logits(checkpoint.model, pixels, batch_size=10)
    return scans, logits.argmax(dim=1).tolist()


def test_the_example_scans_are_the_first_test_scans_and_are_recognised(
    data, examples, unseen_scans, tmp_path
):
    """They were not chosen by whether they are recognised, so one of ten may be wrong."""
    scans, found = examples
    data.write_examples(tmp_path)
    for digit, scan in enumerate(scans):
        first = unseen_scans[0][unseen_scans[1] == digit][0, :, :, 0]
        np.testing.assert_array_equal(np.asarray(Image.open(scan)), first)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / scan.name)), first)
    assert sum(digit == label for digit, label in enumerate(found)) >= 9


def test_scans_are_drawn_with_their_predictions(artifact, examples):
    """The labels are torch's; one that is wrong is marked."""
    command = [sys.executable, DIGITS / "recognise.py", artifact.path, DIGITS / "scans"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)
    _, found = examples
    captions = re.findall(r"(\d)  [\d.]+%(?: \((\d)!\))?", done.stdout)
    assert captions == [
        (str(label), "" if label == digit else str(digit)) for digit, label in enumerate(found)
    ]
    assert set(" ░▒▓█") <= set(done.stdout)
    correct = sum(label == digit for digit, label in enumerate(found))
    assert f"{correct} of 10 scans that the model never saw recognised" in done.stdout


def test_onnx_and_torch_give_every_test_scan_the_same_class(
    artifact, checkpoint, unseen_scans, by_torch
):
    """At two batch sizes."""
    for batch in (1, 48):
        found = classes(artifact.path, unseen_scans[0], checkpoint.preprocess, batch)
        np.testing.assert_array_equal(found, by_torch)


@pytest.fixture(scope="module")
def csvs(data, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The scans to learn from and to test on, as CSV files."""
    return data.write_csvs(tmp_path_factory.mktemp("csv"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "method"),
    [("fp16", ""), ("int8", ""), ("int8-static", "percentile"), ("int8-static", "entropy")],
)
def test_narrow_digits_models_give_the_same_classes(
    artifact, checkpoint, unseen_scans, by_torch, csvs, precision, method
):
    """FP16 on every test scan; INT8 on 99 %, and no more than half a point of accuracy is lost."""
    static = precision == "int8-static"
    settings = QuantizeSettings(
        precision=precision,
        calibration=csvs[0] if static else None,
        images=csvs[1],
        max_drop=0.5,
        **({"method": method} if static else {}),
    )
    made = quantize(artifact.path, settings=settings)
    stage = made.comparison.stage
    assert stage.passed is True
    assert stage.real_images == len(by_torch) == 359
    expected = 1.0 if precision == "fp16" else 0.99
    assert stage.real_agreement >= expected
    assert stage.accuracy_drop <= 0.5
    scans, targets = unseen_scans
    for batch in (1, 48):
        found = classes(made.path, scans, checkpoint.preprocess, batch)
        assert (found == by_torch).mean() >= expected
        assert (by_torch == targets).mean() - (found == targets).mean() <= 0.005


@pytest.mark.slow
def test_a_short_training_recognises_most_test_scans(tmp_path):
    """Through the script, with an eighth of its epochs."""
    command = [sys.executable, DIGITS / "train.py", tmp_path, "--epochs", "5"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    last = done.stdout.splitlines()[-1]
    assert last.startswith("seed 1: ")
    assert float(last.split()[7].rstrip("%")) > 60, last
    assert (tmp_path / "digits.onnx").is_file()


@pytest.mark.slow
def test_the_quickstart_ends_with_status_0():
    """Set-up, both models and every command in it; with the smallest variant in place of ti16."""
    done = subprocess.run(
        [SCRIPTS / "quickstart", "mnist"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "of 10 scans that the model never saw recognised" in done.stdout

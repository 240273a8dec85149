"""The model that the project trains itself: real scanned digits, accuracy and not only distance."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from vit_export.artifact.manifest import Preprocess
from vit_export.checkpoint.load import load_checkpoint
from vit_export.images.digits_csv import read_digits
from vit_export.images.prepare import normalize, resize_and_crop
from vit_export.pipeline.quantize import quantize
from vit_export.quantization.settings import QuantizeSettings
from vit_export.runtime import load
from vit_export.training.predict import predict_logits
from vit_export.training.split import stratified_split

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Digits:
    """The trained model, and the images that it did not learn from."""

    folder: Path
    images: np.ndarray  # uint8 (S, 28, 28, 1)
    targets: np.ndarray
    by_torch: np.ndarray  # torch's classes of them
    preprocess: Preprocess
    seconds: float  # that the training took


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """Trained by the script that README names; the digits split into two CSVs."""
    folder = tmp_path_factory.mktemp("digits")
    started = time.monotonic()
    subprocess.run([ROOT / "scripts" / "train_digits", folder], check=True, cwd=ROOT)
    seconds = time.monotonic() - started
    model = load_checkpoint(folder / "vit_mnist_28.safetensors").model
    preprocess = Preprocess.of(model.config)
    data = read_digits(
        folder / "digits.csv", decode=lambda image: resize_and_crop(image, preprocess)
    )
    learned, held_out = stratified_split(data.targets, fraction=0.2, seed=1)
    header, *rows = (folder / "digits.csv").read_text(encoding="utf-8").splitlines()
    for name, chosen in (("learned.csv", learned), ("held_out.csv", held_out)):
        lines = [header, *(rows[i] for i in chosen), ""]
        (folder / name).write_text("\n".join(lines), encoding="utf-8")
    images = np.array(data.images[held_out])
    by_torch = predict_logits(model, images).argmax(dim=1).numpy()
    return Digits(folder, images, data.targets[held_out], by_torch, preprocess, seconds)


def classes(artifact: Path, digits: Digits, batch: int) -> np.ndarray:
    """The artifact's class of every held-out image."""
    vit = load(artifact, provider="cpu")
    pixels = normalize(digits.images, digits.preprocess)
    chunks = [pixels[i : i + batch] for i in range(0, len(pixels), batch)]
    return np.concatenate([vit.run(chunk).argmax(axis=1) for chunk in chunks])


@pytest.mark.slow
def test_the_trained_digits_model_is_right_and_the_same_everywhere(digits):
    """98 % of the held-out images; torch and ONNX at two batch sizes agree on every one."""
    history = [json.loads(line) for line in
               (digits.folder / "vit_mnist_28.history.jsonl").read_text().splitlines()]  # fmt: skip
    assert max(epoch["val_accuracy"] for epoch in history) >= 0.98
    assert (digits.by_torch == digits.targets).mean() >= 0.98
    for batch in (1, 48):
        by_onnx = classes(digits.folder / "vit_mnist_28.onnx", digits, batch)
        np.testing.assert_array_equal(by_onnx, digits.by_torch)
    assert digits.seconds < 900, "three minutes on two idle cores; something is badly slow"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "method"),
    [("fp16", ""), ("int8", ""), ("int8-static", "percentile"), ("int8-static", "entropy")],
)
def test_narrow_digits_models_name_the_same_classes(digits, precision, method):
    """FP16 on every held-out image; INT8 on 99 %, and no more than half a point is lost."""
    static = precision == "int8-static"
    settings = QuantizeSettings(
        precision=precision,
        calibration=digits.folder / "learned.csv" if static else None,
        images=digits.folder / "held_out.csv",
        max_drop=0.5,
        **({"method": method} if static else {}),
    )
    made = quantize(digits.folder / "vit_mnist_28.onnx", settings=settings)
    stage = made.comparison.stage
    assert stage.passed is True
    assert stage.real_images == len(digits.images) == 359
    expected = 1.0 if precision == "fp16" else 0.99
    assert stage.real_agreement >= expected
    assert stage.accuracy_drop <= 0.5
    for batch in (1, 48):
        found = classes(made.path, digits, batch)
        assert (found == digits.by_torch).mean() >= expected
        assert 100 * ((digits.by_torch == digits.targets).mean()
                      - (found == digits.targets).mean()) <= 0.5  # fmt: skip

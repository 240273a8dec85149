"""The model that the project trains itself: real scanned digits, accuracy and not only distance."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from vit_export.manifest import Preprocess
from vit_export.model.checkpoint import load_checkpoint
from vit_export.model.data import stratified_split
from vit_export.model.digits import read_digits
from vit_export.model.predict import predict_logits
from vit_export.runtime import load
from vit_export.runtime.image import normalize, resize_and_crop

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_trained_digits_model_is_right_and_the_same_everywhere(tmp_path):
    """98 % of the held-out images; torch and ONNX at two batch sizes agree on every one."""
    started = time.monotonic()
    subprocess.run([ROOT / "scripts" / "train_digits", tmp_path], check=True, cwd=ROOT)
    seconds = time.monotonic() - started

    checkpoint = tmp_path / "vit_mnist_28.safetensors"
    history = [json.loads(line) for line in
               (tmp_path / "vit_mnist_28.history.jsonl").read_text().splitlines()]  # fmt: skip
    assert max(epoch["val_accuracy"] for epoch in history) >= 0.98

    model = load_checkpoint(checkpoint).model
    preprocess = Preprocess.of(model.config)
    data = read_digits(
        tmp_path / "digits.csv", decode=lambda image: resize_and_crop(image, preprocess)
    )
    _, held_out = stratified_split(data.targets, fraction=0.2, seed=1)
    images = np.array(data.images[held_out])
    by_torch = predict_logits(model, images).argmax(dim=1).numpy()
    assert (by_torch == data.targets[held_out]).mean() >= 0.98

    vit = load(tmp_path / "vit_mnist_28.onnx", provider="cpu")
    pixels = normalize(images, preprocess)
    for batch in (1, 48):
        chunks = [pixels[i : i + batch] for i in range(0, len(pixels), batch)]
        by_onnx = np.concatenate([vit.run(chunk).argmax(axis=1) for chunk in chunks])
        np.testing.assert_array_equal(by_onnx, by_torch)
    assert seconds < 900, "three minutes on two idle cores; something is badly slow"

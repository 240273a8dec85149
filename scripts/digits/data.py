"""The scanned digits of scikit-learn, in two parts: to learn from, and to test on.

They are the 1797 test images of "Optical Recognition of Handwritten Digits" (UCI), written by 13
people, 8 x 8 px, here enlarged to 28 x 28 px. A fifth of every digit is for the test and nothing
else; `vit-export finetune` holds out a part of the rest for validation. Who wrote which digit is
not recorded, so the same people wrote digits in every part.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from vit_export.training.split import stratified_split

SIDE_PX = 28
TEST_FRACTION, TEST_SEED = 0.2, 0  # the same images whatever the seed of a training


def load_scans() -> tuple[np.ndarray, np.ndarray]:
    """Return the scans, uint8 (1797, 28, 28), black to white, and their digits, int64 (1797,)."""
    digits = load_digits()
    scans = []
    for image in digits.images:
        small = Image.fromarray((image * 255 / 16).astype(np.float32))
        large = np.asarray(small.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC))
        scans.append(large.round().clip(0, 255).astype(np.uint8))
    return np.stack(scans), digits.target.astype(np.int64)


def split(targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices to learn from, 1438, and those to test on, 359."""
    return stratified_split(targets, fraction=TEST_FRACTION, seed=TEST_SEED)


def write_csvs(folder: Path) -> tuple[Path, Path]:
    """Write `learn.csv` and `test.csv`, as `vit-export finetune` and `quantize` read them."""
    scans, targets = load_scans()
    paths = folder / "learn.csv", folder / "test.csv"
    for path, rows in zip(paths, split(targets), strict=True):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["label", *(f"pixel{i}" for i in range(SIDE_PX * SIDE_PX))])
            writer.writerows([targets[row], *scans[row].ravel()] for row in rows)
    return paths


def write_examples(folder: Path) -> None:
    """Write the first test scan of each digit as a PNG, `0.png` to `9.png`."""
    scans, targets = load_scans()
    _, test = split(targets)
    folder.mkdir(exist_ok=True)
    for digit in range(10):
        first = next(row for row in test if targets[row] == digit)
        Image.fromarray(scans[first]).save(folder / f"{digit}.png")

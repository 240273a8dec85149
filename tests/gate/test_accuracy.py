"""Top-1 classes on real images, and their labels."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vit_export.artifact.preprocess import Preprocess
from vit_export.errors import DataError
from vit_export.gate.accuracy import BATCH, RealImages, compare_classes, read_images, top1
from vit_export.images.prepare import prepare_batch
from vit_export.runtime.onnxruntime.runner import OrtRunner

PREPROCESS = Preprocess(size=(32, 32))
GREY = Preprocess(size=(28, 28), crop_pct=1.0, mean=(0.13,), std=(0.3,), color="L")


def pictures(folder: Path, names: list[str]) -> None:
    """Small noise images."""
    rng = np.random.default_rng(0)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)


def test_a_folder_has_labels_only_if_every_subfolder_is_a_class_of_the_artifact(tmp_path):
    pictures(tmp_path, ["dog/1.png", "cat/2.png", "cat/3.png"])
    found = read_images(tmp_path, PREPROCESS, ["cat", "dog"])
    assert found.targets.tolist() == [0, 0, 1]
    assert [path.name for path in found.images] == ["2.png", "3.png", "1.png"]
    assert read_images(tmp_path, PREPROCESS, ["cat"]).targets is None
    matched = read_images(f"{tmp_path}/*/*.png", PREPROCESS, ["cat", "dog"])  # a pattern
    assert (matched.images, matched.targets.tolist()) == (found.images, [0, 0, 1])
    pictures(tmp_path, ["loose.png"])
    assert read_images(tmp_path, PREPROCESS, ["cat", "dog"]).targets is None


def test_a_folder_with_the_name_of_two_classes_is_refused(tmp_path):
    """ImageNet has two classes "crane": their images would count as wrong."""
    labels = ["cat", "crane", "dog", "crane"]
    pictures(tmp_path, ["cat/1.png", "dog/2.png"])
    assert read_images(tmp_path, PREPROCESS, labels).targets.tolist() == [0, 2]
    pictures(tmp_path, ["crane/3.png"])
    with pytest.raises(DataError, match=r"crane: classes 1 and 3 are both called 'crane'"):
        read_images(tmp_path, PREPROCESS, labels)
    (tmp_path / "crane").rename(tmp_path / "birds")
    assert read_images(tmp_path, PREPROCESS, labels).targets is None


@pytest.mark.parametrize("labelled", [True, False])
def test_a_digits_csv_has_labels_where_it_has_that_column(tmp_path, labelled):
    header = (["label"] if labelled else []) + [f"pixel{i}" for i in range(784)]
    rows = [([digit] if labelled else []) + [digit * 20] * 784 for digit in (3, 1)]
    path = tmp_path / "digits.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, quoting=csv.QUOTE_NONNUMERIC).writerows([header, *rows])
    found = read_images(path, GREY, ())
    assert found.images.shape == (2, 28, 28, 1)
    assert found.images[0, 0, 0, 0] == 60
    assert (found.targets.tolist() if labelled else found.targets) == ([3, 1] if labelled else None)


def test_no_images_are_an_error(tmp_path):
    with pytest.raises(DataError, match="holds no images"):
        read_images(tmp_path, PREPROCESS, ())
    with pytest.raises(DataError, match="no such CSV file"):
        read_images(tmp_path / "none.csv", GREY, ())
    with pytest.raises(DataError, match="no such folder or file"):
        read_images(tmp_path / "none", GREY, ())
    with pytest.raises(DataError, match="no image matches"):
        read_images(tmp_path / "*.jpg", GREY, ())


def test_top1_is_the_same_at_any_batch_size(tiny_export):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH + 5, 32, 32, 3), dtype=np.uint8)
    runner = OrtRunner(tiny_export.path, provider="cpu")
    preprocess = tiny_export.manifest.preprocess
    found = top1(runner, RealImages("noise", images), preprocess)
    logits = runner.run({"pixel_values": prepare_batch(images, preprocess)})["logits"]
    np.testing.assert_array_equal(found, logits.argmax(axis=1))
    assert len(set(found.tolist())) > 1  # otherwise any order would do


def test_agreement_and_drop_are_shares_and_points():
    reference, found = np.array([0, 1, 2, 3]), np.array([0, 1, 2, 0])
    plain = compare_classes(found, reference, None)
    assert plain.agreement == 0.75
    assert plain.drop is None
    labelled = compare_classes(found, reference, np.array([0, 1, 1, 3]))
    assert labelled.drop == 25.0
    assert str(labelled) == (
        "4 real images: top-1 agrees on 75.00 %, 50.00 % right (fp32: 75.00 %)"
    )


def test_some_images_are_spread_over_all_of_them():
    images = np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1)
    few = RealImages("x", images, np.arange(100)).some(5)
    assert few.images.ravel().tolist() == few.targets.tolist() == [0, 25, 50, 74, 99]
    assert len(RealImages("x", images).some(1000)) == 100

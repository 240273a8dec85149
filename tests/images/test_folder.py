"""The user's own pictures join the synthetic ones, the same ones every time."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from vit_export.artifact.golden import pictures
from vit_export.artifact.manifest import Preprocess
from vit_export.errors import DataError, ImageError
from vit_export.images.folder import MOST, image_files, user_pictures
from vit_export.images.prepare import resize_and_crop

PREPROCESS = Preprocess(size=(16, 24))
BEFORE = pictures(16, 24, 3)


def test_pictures_of_folders_below_are_found_in_a_fixed_order(tmp_path, photographs):
    """Whatever the case of their ending; other files are passed over."""
    (tmp_path / "b").mkdir()
    (tmp_path / "a.png").mkdir()
    names = ["z.jpg", "b/a.PNG", "b/c.jpeg", "a.txt", "README.md"]
    for name in names:
        shutil.copy(photographs[0], tmp_path / name)
    found = [str(p.relative_to(tmp_path)) for p in image_files(tmp_path)]
    assert found == ["b/a.PNG", "b/c.jpeg", "z.jpg"]


def test_a_folder_without_pictures_is_refused(tmp_path, photographs):
    """A file instead of a folder too."""
    with pytest.raises(DataError, match=r"holds no images \(.*\.jpg"):
        image_files(tmp_path)
    for path in (tmp_path / "none", photographs[0]):
        with pytest.raises(DataError, match="no such folder of images"):
            image_files(path)


def test_they_stand_behind_the_synthetic_pictures_prepared_as_always(tmp_path, photographs):
    """Resized and cropped, not yet normalised."""
    for photo in photographs:
        shutil.copy(photo, tmp_path)
    found = user_pictures(tmp_path, PREPROCESS, before=BEFORE)
    assert found.shape == (10, 16, 24, 3)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[:8], BEFORE)
    for row, photo in zip(found[8:], sorted(photographs), strict=True):
        np.testing.assert_array_equal(row, resize_and_crop(photo, PREPROCESS))


def test_of_many_pictures_a_few_are_chosen_from_first_to_last(tmp_path):
    """Spread over the folder; no more than keep the golden file small."""
    for i in range(40):
        Image.new("RGB", (24, 16), (i, 0, 0)).save(tmp_path / f"{i:02}.png")
    chosen = user_pictures(tmp_path, PREPROCESS, before=BEFORE)[8:, 0, 0, 0]
    assert len(chosen) == MOST
    assert (chosen[0], chosen[-1]) == (0, 39)
    assert (np.diff(chosen.astype(int)) >= 2).all()


def test_a_broken_picture_is_named(tmp_path):
    """Not left out."""
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        user_pictures(tmp_path, PREPROCESS, before=BEFORE)

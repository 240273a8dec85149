"""One rule finds the images of folders, patterns and lists, always in the same order."""

from __future__ import annotations

import io
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from vit_export.artifact.preprocess import Preprocess
from vit_export.errors import DataError, ImageError
from vit_export.images.decode import FORMATS
from vit_export.images.folder import (
    MAX_USER_PICTURES,
    is_one_image,
    iterate_images,
    list_images,
    split_files,
    user_pictures,
)
from vit_export.images.prepare import resize_and_crop

PREPROCESS = Preprocess(size=(16, 24))


@pytest.fixture
def folder(tmp_path):
    """Images, other files, hidden ones, a FIFO, and folders with images' suffixes."""
    for name in ("b", "a.png", ".cache", "[2020]"):
        (tmp_path / name).mkdir()
    for name in ("z.jpg", "b/a.PNG", "b/c.jpeg", "notes.txt", "b/LICENSE", ".hidden.png",
                 ".cache/x.png", "[2020]/1.png"):  # fmt: skip
        Image.new("RGB", (24, 16)).save(tmp_path / name, "PNG")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.webp").symlink_to("z.jpg")
    (tmp_path / "broken.webp").symlink_to("nowhere")
    return tmp_path


def test_images_below_a_folder_are_listed_in_sorted_order(folder):
    """By suffix in any case, regular files and links to them only, none that is hidden."""
    images, others = split_files(folder)
    names = [str(path.relative_to(folder)) for path in images]
    assert names == ["[2020]/1.png", "b/a.PNG", "b/c.jpeg", "link.webp", "z.jpg"]
    names = [str(path.relative_to(folder)) for path in others]
    assert names == ["b/LICENSE", "broken.webp", "notes.txt", "pipe.png"]
    assert list_images(folder) == list_images(str(folder)) == images


@pytest.mark.parametrize("suffix", [suffixes[0] for suffixes in FORMATS.values()])
def test_every_format_that_is_decoded_is_listed(tmp_path, suffix):
    """Also HEIC, whose error names the package that reads it."""
    (tmp_path / f"a{suffix}").touch()
    (tmp_path / "a.eps").touch()
    assert [path.name for path in list_images(tmp_path)] == [f"a{suffix}"]


def test_patterns_list_the_images_that_match(folder):
    """In any depth with `**`; a name that exists is no pattern."""
    listed = [path.name for path in list_images(f"{folder}/**/*")]
    assert sorted(listed) == ["1.png", "a.PNG", "c.jpeg", "link.webp", "z.jpg"]
    assert [path.name for path in list_images(f"{folder}/b/?.*")] == ["a.PNG", "c.jpeg"]
    assert [path.name for path in list_images(f"{folder}/[2020]")] == ["1.png"]
    assert list_images(folder / "[2020]" / "1.png") == [folder / "[2020]" / "1.png"]
    with pytest.raises(DataError, match=r"\*\.bmp: no image matches this pattern"):
        list_images(f"{folder}/*.bmp")


def test_a_path_stands_for_itself(folder):
    """Whatever its suffix, and also where there is no such file: reading it reports that."""
    for name in ("notes.txt", "none.jpg"):
        assert list_images(folder / name) == [folder / name]


def test_a_folder_without_images_is_an_error(tmp_path):
    """It is named, with the suffixes of images."""
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"holds no images \(.*\.jpg"):
        list_images(tmp_path)


PICTURE = np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("images", "one"),
    [
        ("a.jpg", True),
        (b"bytes", True),
        (bytearray(b"bytes"), True),
        (io.BytesIO(), True),
        (Image.new("RGB", (4, 4)), True),
        (PICTURE, True),
        (PICTURE[..., 0], True),
        (None, True),
        (PICTURE[None], False),
        (["a.jpg"], False),
        (("a.jpg", PICTURE), False),
        (iter(["a.jpg"]), False),
        ({"a.jpg"}, False),
        ("*.jpg", False),
    ],
)
def test_one_image_is_distinguished_from_many(images, one):
    """Folders and patterns are many."""
    assert is_one_image(images) is one


def test_folders_and_patterns_in_a_list_yield_their_files(folder, tmp_path):
    """Between images of other kinds."""
    assert not is_one_image(folder)
    images = [PICTURE, str(folder / "b"), "x.jpg", f"{folder}/z.*"]
    first, *paths = iterate_images(images)
    assert first is PICTURE
    assert [path.name for path in paths] == ["a.PNG", "c.jpeg", "x.jpg", "z.jpg"]
    assert len(list(iterate_images(folder))) == 5


def test_user_pictures_have_the_size_of_the_model(tmp_path, photographs):
    """Resized and cropped, not yet normalised."""
    for photo in photographs:
        shutil.copy(photo, tmp_path)
    result = user_pictures(tmp_path, PREPROCESS)
    assert result.shape == (2, 16, 24, 3)
    assert result.dtype == np.uint8
    for row, photo in zip(result, photographs, strict=True):
        np.testing.assert_array_equal(row, resize_and_crop(photo, PREPROCESS))


def test_of_many_user_pictures_a_few_are_taken_from_first_to_last(tmp_path):
    """Evenly spread, so that the golden file stays small."""
    for i in range(40):
        Image.new("RGB", (24, 16), (i, 0, 0)).save(tmp_path / f"{i:02}.png")
    taken = user_pictures(tmp_path, PREPROCESS)[:, 0, 0, 0]
    assert len(taken) == MAX_USER_PICTURES
    assert (taken[0], taken[-1]) == (0, 39)
    assert (np.diff(taken.astype(int)) >= 2).all()


def test_a_broken_user_picture_is_an_error(tmp_path):
    """It is named."""
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        user_pictures(tmp_path, PREPROCESS)


def test_an_empty_path_is_not_the_current_folder(folder, monkeypatch):
    """It counts as one image, that cannot be read."""
    monkeypatch.chdir(folder)
    assert is_one_image("")
    for images in ("", ["z.jpg", ""]):
        with pytest.raises(ImageError, match="empty path ''\nhint: "):
            list(iterate_images(images))
    assert len(list_images(".")) == 5

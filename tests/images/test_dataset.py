"""Folders of class folders become labelled images; the file that holds the decoded images."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vit_export.artifact.preprocess import Preprocess
from vit_export.errors import DataError, OutputError
from vit_export.images.dataset import (
    LabelledImages,
    class_names,
    read_folder,
    split_folders,
    spool,
)

PREPROCESS = Preprocess(size=(8, 8), crop_pct=1.0)


def read(root: Path) -> LabelledImages:
    """Read a folder at the size of `PREPROCESS`."""
    return read_folder(root, PREPROCESS, class_names(root))


def write_image(path: Path, shade: int) -> None:
    """Write an image whose red is the shade."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (shade, 0, 255 - shade)).save(path)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Two cats and one dog, in folders whose order on disk is not that of their names."""
    write_image(tmp_path / "dog/rex.png", 30)
    write_image(tmp_path / "cat/b.png", 20)
    write_image(tmp_path / "cat/a.png", 10)
    return tmp_path


def test_classes_are_the_folders_in_sorted_order(pets: Path) -> None:
    """Targets, labels and pixels correspond."""
    data = read(pets)
    assert data.labels == ("cat", "dog")
    assert data.targets.tolist() == [0, 0, 1]
    assert data.images.shape == (3, 8, 8, 3)
    assert data.images.dtype == np.uint8
    assert data.images[:, 0, 0, 0].tolist() == [10, 20, 30]


def test_folders_0_to_11_are_sorted_as_strings(tmp_path: Path) -> None:
    """As torchvision's ImageFolder sorts them; the labels keep the folders' names."""
    for number in range(12):
        write_image(tmp_path / f"{number}/a.png", number)
    data = read(tmp_path)
    assert data.labels == ("0", "1", "10", "11", *"23456789")
    assert data.images[:, 0, 0, 0].tolist() == [int(label) for label in data.labels]


def test_images_below_a_class_folder_belong_to_the_class(pets: Path) -> None:
    """At any depth and with suffixes in capitals, as torchvision's ImageFolder."""
    write_image(pets / "dog/puppies/small.PNG", 40)
    assert read(pets).targets.tolist() == [0, 0, 1, 1]


def test_other_files_are_reported_and_hidden_ones_skipped(pets: Path) -> None:
    """A hidden folder of a notebook would double images."""
    for name in ("readme.txt", "cat/labels.csv", ".hidden", "cat/.DS_Store"):
        (pets / name).write_text("")
    write_image(pets / "cat/.ipynb_checkpoints/a.png", 9)
    data = read(pets)
    assert data.ignored == ("cat/labels.csv", "readme.txt")
    assert len(data.images) == 3


def test_more_images_than_one_chunk_keep_their_order(tmp_path: Path) -> None:
    """Though they are decoded in threads."""
    for shade in range(256):
        write_image(tmp_path / "a" / f"{shade:03}.png", shade)
    write_image(tmp_path / "b/0.png", 7)
    assert read(tmp_path).images[:, 0, 0, 0].tolist() == [*range(256), 7]


def test_progress_counts_every_image(pets: Path) -> None:
    """The last call reports all of them."""
    calls: list[tuple[int, int]] = []

    def progress(stage: str, done: int = 0, total: int = 0) -> None:
        calls.append((done, total))

    read_folder(pets, PREPROCESS, ("cat", "dog"), progress)
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_one_error_lists_the_corrupt_images(pets: Path) -> None:
    """Ten of them by name, and the number of the others."""
    for number in range(12):
        (pets / "dog" / f"bad{number:02}.jpg").write_bytes(b"not a picture")
    with pytest.raises(DataError) as caught:
        read(pets)
    message = str(caught.value)
    assert "12 of 15 images cannot be decoded" in message
    assert all(f"dog/bad{number:02}.jpg: " in message for number in range(10))
    assert "bad10" not in message
    assert "... and 2 more" in message
    assert message.count(str(pets)) == 1


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        ((), "no folders"),
        (("cat",), "only the folder 'cat'"),
    ],
)
def test_fewer_than_two_classes_are_refused(
    tmp_path: Path, folders: tuple[str, ...], words: str
) -> None:
    """The message says what was found."""
    for folder in folders:
        write_image(tmp_path / folder / "a.png", 1)
    with pytest.raises(DataError, match=words):
        read(tmp_path)


@pytest.mark.parametrize(
    ("folders", "train", "validation"),
    [
        (("cat", "dog"), ".", None),
        (("cat", "train"), ".", None),  # a class of trains
        (("train", "val"), "train", "val"),
        (("Training", "valid", "test"), "Training", "valid"),
        (("test", "train", "validation"), "train", "validation"),
        (("train", "test"), "train", None),
    ],
)
def test_a_split_names_its_training_and_validation_folder(
    tmp_path: Path, folders: tuple[str, ...], train: str, validation: str | None
) -> None:
    """Not classes."""
    for folder in folders:
        (tmp_path / folder).mkdir()
    expected = tmp_path / train, None if validation is None else tmp_path / validation
    assert split_folders(tmp_path) == expected


@pytest.mark.parametrize("folders", [("val", "test"), ("train", "training"), ("val",)])
def test_a_split_without_one_training_folder_is_refused(
    tmp_path: Path, folders: tuple[str, ...]
) -> None:
    """The error names the folders that were found."""
    for folder in folders:
        (tmp_path / folder).mkdir()
    with pytest.raises(DataError, match=f"{sorted(folders)[0]}.*a split of the data"):
        split_folders(tmp_path)


def test_validation_images_have_the_indices_of_the_training_classes(pets: Path) -> None:
    """A class may be missing among them; a class that is not trained on is an error."""
    data = read_folder(pets, PREPROCESS, ("ant", "cat", "dog"))
    assert data.labels == ("ant", "cat", "dog")
    assert data.targets.tolist() == [1, 1, 2]
    with pytest.raises(DataError, match=r"no images of 1 of its class folders\n  dog$"):
        read_folder(pets, PREPROCESS, ("ant", "cat"))
    (pets / "none").mkdir()
    with pytest.raises(DataError, match=r"2 of its class folders hold no images .*\n  ant\n  cat"):
        read_folder(pets / "none", PREPROCESS, ("ant", "cat"))


def test_a_class_without_images_is_named(pets: Path) -> None:
    """The model would never predict it."""
    (pets / "fish").mkdir()
    with pytest.raises(DataError, match=r"1 of its class folders hold no images .*\n  fish\n"):
        read(pets)


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    """The message says what is expected instead."""
    with pytest.raises(DataError, match="one folder of images per class"):
        read(tmp_path / "nowhere")


def test_a_closed_pipe_of_the_progress_is_not_blamed_on_the_disk(pets: Path) -> None:
    """As of `vit-export finetune ... 2>&1 | head`."""

    def closed(stage: str, done: int = 0, total: int = 0) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        read_folder(pets, PREPROCESS, ("cat", "dog"), closed)


def test_a_full_disk_is_an_error_with_the_space_needed() -> None:
    """A limit on the size of files stands for a full disk."""
    images = [np.zeros((64, 64, 1), np.uint8)] * 4
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OutputError, match="TMPDIR"):
            spool(images, (0, 0, 0, 0), (), lambda *_: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_the_hash_depends_on_pixels_and_targets() -> None:
    """So that a run is not resumed on other data."""

    def digest(pixel: int, target: int) -> str:
        image = np.full((2, 2, 1), pixel, np.uint8)
        return spool([image], (target,), ("a", "b"), lambda *_: None).sha256

    assert digest(1, 1) == digest(1, 1)
    assert len({digest(1, 1), digest(2, 1), digest(1, 2)}) == 3

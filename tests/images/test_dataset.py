"""Folders of class folders, the file that decoded images live in, and the split by class."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vit_export.artifact.manifest import Preprocess
from vit_export.errors import DataError, OutputError
from vit_export.images.dataset import LabelledImages, Pixels, read_folder, split_folders, spool
from vit_export.images.prepare import resize_and_crop
from vit_export.training.split import stratified_split

PREPROCESS = Preprocess(size=(8, 8), crop_pct=1.0)


def decode(source: Path | Pixels) -> Pixels:
    """What the command passes in."""
    return resize_and_crop(source, PREPROCESS)


def read(root: Path) -> LabelledImages:
    """Read a folder at the size of `PREPROCESS`."""
    return read_folder(root, decode=decode)


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
    """Indices, labels and pixels belong together."""
    data = read(pets)
    assert data.labels == ("cat", "dog")
    assert data.targets.tolist() == [0, 0, 1]
    assert data.images.shape == (3, 8, 8, 3)
    assert data.images.dtype == np.uint8
    assert data.images[:, 0, 0, 0].tolist() == [10, 20, 30]


def test_images_below_a_class_folder_belong_to_the_class(pets: Path) -> None:
    """At any depth and with suffixes in capitals, as torchvision's ImageFolder."""
    write_image(pets / "dog/puppies/small.PNG", 40)
    assert read(pets).targets.tolist() == [0, 0, 1, 1]


def test_files_that_are_no_images_are_told_and_hidden_ones_skipped(pets: Path) -> None:
    """Nothing is left out in silence but what systems hide."""
    for name in ("readme.txt", "cat/labels.csv", ".hidden", "cat/.DS_Store"):
        (pets / name).write_text("")
    assert read(pets).ignored == ("cat/labels.csv", "readme.txt")


def test_more_images_than_one_chunk_keep_their_order(tmp_path: Path) -> None:
    """Decoding in threads and in chunks does not mix images up."""
    for shade in range(256):
        write_image(tmp_path / "a" / f"{shade:03}.png", shade)
    write_image(tmp_path / "b/0.png", 7)
    assert read(tmp_path).images[:, 0, 0, 0].tolist() == [*range(256), 7]


def test_progress_counts_every_image(pets: Path) -> None:
    """The last call says that all is done."""
    calls: list[tuple[int, int]] = []
    read_folder(
        pets, decode=decode, progress=lambda _, done=0, total=0: calls.append((done, total))
    )
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_all_corrupt_images_are_named_in_one_error(pets: Path) -> None:
    """Up to ten by name, the rest by number."""
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
    """There is nothing to tell apart."""
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
    """Taken for classes, `train` and `val` would be trained on and mean nothing."""
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
    data = read_folder(pets, decode=decode, labels=("ant", "cat", "dog"))
    assert data.labels == ("ant", "cat", "dog")
    assert data.targets.tolist() == [1, 1, 2]
    with pytest.raises(DataError, match="no training images for class folder 'dog'"):
        read_folder(pets, decode=decode, labels=("ant", "cat"))


def test_a_class_without_images_is_named(pets: Path) -> None:
    """An empty class would be an output that is never right."""
    (pets / "fish").mkdir()
    with pytest.raises(DataError, match="class folder 'fish' without images"):
        read(pets)


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    """The message says what is expected instead."""
    with pytest.raises(DataError, match="one folder of images per class"):
        read(tmp_path / "nowhere")


def test_a_full_disk_is_told_with_the_room_that_is_needed() -> None:
    """The system itself refuses the write: a limit on the size of files stands for the disk."""
    images = [np.zeros((64, 64, 1), np.uint8)] * 4
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OutputError, match="TMPDIR"):
            spool(images, len(images), (0, 0, 0, 0), lambda *_: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_the_digest_tells_other_pixels_and_other_labels_apart() -> None:
    """Resuming on other data is refused by it."""

    def digest(pixel: int, target: int) -> str:
        image = np.full((2, 2, 1), pixel, np.uint8)
        return spool([image], 1, (target,), lambda *_: None)[1]

    assert digest(1, 1) == digest(1, 1)
    assert len({digest(1, 1), digest(2, 1), digest(1, 2)}) == 3


@given(
    counts=st.lists(st.integers(1, 60), min_size=2, max_size=12),
    fraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 2**32),
)
def test_a_split_holds_out_the_same_share_of_every_class(
    counts: list[int], fraction: float, seed: int
) -> None:
    """Off by less than one image, nothing lost or doubled, every class still trained on."""
    targets = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    try:
        train, held_out = stratified_split(targets, fraction=fraction, seed=seed)
    except DataError:
        shares = fraction * np.array(counts)
        assert all(np.floor(np.minimum(shares, np.array(counts) - 1)) == 0)
        return
    assert sorted([*train, *held_out]) == list(range(len(targets)))
    held = np.bincount(targets[held_out], minlength=len(counts))
    assert all(abs(held - fraction * np.array(counts)) < 1)
    assert all(held < counts)
    assert len(held_out) <= round(fraction * len(targets))
    if min(counts) > 1 / (1 - fraction):
        assert len(held_out) == round(fraction * len(targets))


def test_the_split_depends_on_the_seed_alone() -> None:
    """Same seed, same images held out; another seed, others."""
    targets = np.arange(100) % 5
    first, again, other = (
        stratified_split(targets, fraction=0.2, seed=seed)[1].tolist() for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_split_of_too_few_images_is_refused() -> None:
    """Without validation images there is no best epoch."""
    with pytest.raises(DataError, match="hold out 20% of 2 images"):
        stratified_split(np.array([0, 1]), fraction=0.2, seed=0)

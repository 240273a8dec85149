"""Labelled images to train on: a folder of class folders, decoded once to a file on disk.

Images are stored at the model's size, uint8 (n, H, W, C), in an unnamed temporary file that is
mapped into memory. Each is decoded once, not once an epoch, and a data set may be larger than
memory. One error lists everything that is wrong with a data set.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vit_export.artifact.preprocess import Preprocess
from vit_export.errors import DataError, ImageError, OutputError
from vit_export.images.decode import SUFFIXES, Pixels
from vit_export.images.folder import split_files
from vit_export.images.prepare import resize_and_crop
from vit_export.progress import Progress, silent

TRAIN_NAMES = ("train", "training")
VALIDATION_NAMES = ("val", "valid", "validation")
SPLIT_NAMES = frozenset({*TRAIN_NAMES, *VALIDATION_NAMES, "test"})
MAX_LISTED = 10  # faults that an error lists; the others are counted
CHUNK = 256  # images decoded before they are written


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """A classification data set."""

    images: Pixels  # (n, H, W, C) at the model's size
    targets: NDArray[np.int64]  # index of each image's class, (n,)
    labels: tuple[str, ...]  # names of the classes
    ignored: tuple[str, ...] = ()  # other files of the folder, by relative name
    sha256: str = ""  # of all pixels and targets


def split_folders(root: Path) -> tuple[Path, Path | None]:
    """Find the training and the validation folder of a data set.

    Returns:
        `root` and `None`; but `root/train` and `root/val` (or `None`) where `root` holds only
        such folders: `train` or `training`, `val`, `valid` or `validation`, and `test`, which is
        not read.

    Raises:
        DataError: The folders are a split without training images.
    """
    names = {path.name.lower(): path for path in _folders(root)}
    if not names or not names.keys() <= SPLIT_NAMES:
        return root, None
    train = [names[name] for name in TRAIN_NAMES if name in names]
    validation = [names[name] for name in VALIDATION_NAMES if name in names]
    if len(train) != 1 or len(validation) > 1:
        raise DataError(
            f"cannot train on {root}: its folders ({', '.join(sorted(names))}) are a split of the "
            "data, expected one training folder and at most one for validation",
            hint="name them train and val, or give the folder that holds the class folders",
        )
    return train[0], validation[0] if validation else None


def class_names(root: Path) -> tuple[str, ...]:
    """List the classes of a folder: the names of the folders in it, sorted.

    Raises:
        DataError: Not a folder, or fewer than two folders in it.
    """
    names = tuple(folder.name for folder in _folders(root))
    if len(names) < 2:
        found = f"only the folder {names[0]!r}" if names else "no folders"
        raise DataError(
            f"cannot train on {root}: found {found} in it, expected one folder of images for "
            "each of at least 2 classes"
        )
    return names


def read_folder(
    root: Path, preprocess: Preprocess, *, labels: Sequence[str] = (), progress: Progress = silent
) -> LabelledImages:
    """Read a folder that holds one folder of images per class.

    Classes are the folders' names in sorted order. The images of a class are all images in its
    folder and below (see `folder.is_image_file`), as for torchvision's `ImageFolder`.

    Args:
        root: The folder of class folders.
        preprocess: How images are brought to the model's size.
        labels: The classes of the training images, where these are for validation: every folder
            must be one of them.
        progress: Called after each image.

    Raises:
        DataError: No folder, fewer than two classes, a class that is not in `labels`, a class
            without images, or images that cannot be decoded (all are named).
        OutputError: The disk is full.
    """
    classes = tuple(labels) or class_names(root)
    folders = _folders(root)
    unknown = [folder.name for folder in folders if folder.name not in classes]
    if unknown:
        raise DataError(
            f"cannot validate on {root}: the training folder has no images of {len(unknown)} of "
            f"its class folders{listed(unknown)}",
        )
    stray = [p for p in root.iterdir() if p.is_file() and not p.name.startswith(".")]
    paths, targets, empty = [], [], []
    for folder in folders:
        images, others = split_files(folder)
        paths += images
        targets += [classes.index(folder.name)] * len(images)
        stray += others
        if not images:
            empty.append(folder.name)
    if not paths:
        empty = list(classes)
    if empty:
        raise DataError(
            f"cannot train on {root}: {len(empty)} of its class folders hold no images "
            f"({', '.join(SUFFIXES)}){listed(empty)}",
            hint="add images or remove the folders",
        )
    data = spool(_decoded(paths, root, preprocess), targets, classes, progress)
    ignored = tuple(sorted(path.relative_to(root).as_posix() for path in stray))
    return replace(data, ignored=ignored)


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        raise DataError(
            f"cannot read training images from {root}: it is not a folder",
            hint="give a folder that holds one folder of images per class, or a .csv file",
        )
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _decoded(paths: Sequence[Path], root: Path, preprocess: Preprocess) -> Iterator[Pixels]:
    """Decode files in order, several at a time, and raise once for all that fail."""
    faults: list[str] = []

    def attempt(path: Path) -> Pixels | str:
        try:
            return resize_and_crop(path, preprocess)
        except ImageError as error:
            reason = error.message.removeprefix(f"{path}: ")
            return f"{path.relative_to(root).as_posix()}: {reason}"

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), CHUNK):
            for image in pool.map(attempt, paths[start : start + CHUNK]):
                if isinstance(image, str):
                    faults.append(image)
                elif not faults:
                    yield image
    if faults:
        raise DataError(
            f"cannot train on {root}: {len(faults)} of {len(paths)} images cannot be decoded"
            f"{listed(faults)}",
            hint="remove or repair them",
        )


def spool(
    images: Iterable[Pixels],
    targets: Sequence[int] | NDArray[np.integer],
    labels: tuple[str, ...],
    progress: Progress,
) -> LabelledImages:
    """Write images of one shape to a temporary file and map it into memory, read-only.

    Raises:
        OutputError: The disk is full.
    """
    classes = np.array(targets, dtype=np.int64)
    count, shape = len(classes), ()
    digest = hashlib.sha256(classes.tobytes())
    with tempfile.TemporaryFile(buffering=0) as file:
        for done, image in enumerate(images, start=1):
            shape, data = image.shape, image.tobytes()
            digest.update(data)
            _append(file, data, need=count * len(data))
            progress("decoding images", done, count)
        pixels = np.memmap(file, dtype=np.uint8, mode="r", shape=(count, *shape))
    return LabelledImages(images=pixels, targets=classes, labels=labels, sha256=digest.hexdigest())


def _append(file: io.FileIO, data: bytes, *, need: int) -> None:
    left = memoryview(data)
    try:
        while left:
            left = left[file.write(left) :]
    except OSError as error:
        raise OutputError(
            f"cannot write the decoded images, {need / 1e9:.1f} GB, to {tempfile.gettempdir()}: "
            f"{error.strerror}",
            hint="free some space, or set TMPDIR to a folder on a larger disk",
        ) from error


def listed(items: Sequence[str]) -> str:
    """Return the first `MAX_LISTED` items, each on an indented line, and the number of others."""
    others = len(items) - MAX_LISTED
    lines = [*items[:MAX_LISTED], *([f"... and {others} more"] if others > 0 else [])]
    return "".join(f"\n  {line}" for line in lines)

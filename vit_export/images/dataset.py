"""Labelled images to train on: decoded once, kept on disk, split by class.

Images from any source end up at the model's size, uint8 (n, H, W, C), in an unnamed temporary
file that is mapped into memory: each is decoded once, not once an epoch, and a set larger
than memory works. All faults of a source are reported in one error.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vit_export.errors import DataError, ImageError, OutputError
from vit_export.progress import Progress, silent

Pixels = NDArray[np.uint8]
Decode = Callable[[Path | Pixels], Pixels]  # file or (H, W, C) array -> model's size (H, W, C)

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
TRAIN_NAMES = ("train", "training")
VALIDATION_NAMES = ("val", "valid", "validation")
SPLIT_NAMES = frozenset({*TRAIN_NAMES, *VALIDATION_NAMES, "test"})
NAMED_FAULTS = 10  # how many faults an error lists; the rest are counted
CHUNK = 256  # images decoded ahead of the writer


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """A classification data set.

    Attributes:
        images: uint8 (n, H, W, C) at the model's size.
        targets: Index of each image's class, int64 (n,).
        labels: Name of each class, in the order of the indices.
        ignored: Files of the source that are no images of a class, by relative name.
        sha256: Of all pixels and targets: tells whether two sets are the same.
    """

    images: Pixels
    targets: NDArray[np.int64]
    labels: tuple[str, ...]
    ignored: tuple[str, ...] = ()
    sha256: str = ""


def split_folders(root: Path) -> tuple[Path, Path | None]:
    """Find the training and the validation folder of a data set.

    Returns:
        `root/train` and `root/val` where `root` holds such a split (also `training`, `valid`,
        `validation`, in any case; a `test` folder is not read). The second is `None` where
        there is no validation folder; the first is `root` itself where it holds class folders.

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
    root: Path, *, decode: Decode, labels: Sequence[str] = (), progress: Progress = silent
) -> LabelledImages:
    """Read a folder that holds one folder of images per class.

    Classes are the folders' names in sorted order, their images all files below them with an
    image's suffix (as torchvision's `ImageFolder`). Names that start with a dot are skipped.

    Args:
        root: The folder of class folders.
        decode: Reads one image file at the model's size; raises `ImageError` when it cannot.
            Called from several threads.
        labels: The classes of the training images, where these are for validation: every folder
            must be one of them.
        progress: Called after each image.

    Raises:
        DataError: No folder, fewer than two classes, a class that is not in `labels`, a class
            without images, or images that cannot be decoded (all are named).
        OutputError: No room for the decoded images.
    """
    classes = tuple(labels) or class_names(root)
    folders = _folders(root)
    unknown = [folder.name for folder in folders if folder.name not in classes]
    if unknown:
        raise DataError(
            f"cannot validate on {root}: no training images for {_some(unknown)}",
            hint="expected the class folders of the training folder",
        )
    stray = [p for p in root.iterdir() if p.is_file() and not p.name.startswith(".")]
    paths: list[Path] = []
    targets: list[int] = []
    empty: list[str] = []
    for folder in folders:
        images, others = _image_files(folder)
        paths += images
        targets += [classes.index(folder.name)] * len(images)
        stray += others
        if not images:
            empty.append(folder.name)
    if empty or not paths:
        raise DataError(
            f"cannot train on {root}: {_some(empty or classes)} without images "
            f"({', '.join(SUFFIXES)})",
            hint="add images or remove the folder",
        )
    pixels, digest = spool(_decoded(paths, root, decode), len(paths), targets, progress)
    return LabelledImages(
        images=pixels,
        targets=np.array(targets, dtype=np.int64),
        labels=classes,
        ignored=tuple(sorted(p.relative_to(root).as_posix() for p in stray)),
        sha256=digest,
    )


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        raise DataError(
            f"cannot read training images from {root}: it is not a folder; "
            "expected one folder of images per class in it, or a .csv file"
        )
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _image_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Images below a folder, and other files below it, each in sorted order."""
    inside = [
        Path(parent, name)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if not name.startswith(".")
    ]
    images = sorted(path for path in inside if path.suffix.lower() in SUFFIXES)
    return images, sorted(path for path in inside if path.suffix.lower() not in SUFFIXES)


def _decoded(paths: Sequence[Path], root: Path, decode: Decode) -> Iterator[Pixels]:
    """Decode files in order, several at a time, and raise once for all that fail."""
    faults: list[str] = []

    def attempt(path: Path) -> Pixels | str:
        try:
            return decode(path)
        except ImageError as error:
            reason = str(error).removeprefix(f"{path}: ")
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
            f"cannot train on {root}: {len(faults)} of {len(paths)} images cannot be decoded\n"
            f"{listed(faults)}\nremove or repair them"
        )


def spool(
    images: Iterable[Pixels], count: int, targets: Sequence[int], progress: Progress
) -> tuple[Pixels, str]:
    """Write images one after the other to a temporary file and map it into memory.

    Args:
        images: Of one shape, uint8 (H, W, C) each.
        count: How many there are; at least one.
        targets: Classes of the images; they enter the digest only.
        progress: Called after each image.

    Returns:
        uint8 (count, H, W, C), read-only, and the SHA-256 of targets and pixels.

    Raises:
        OutputError: No room for the images.
    """
    digest = hashlib.sha256(np.array(targets, dtype=np.int64).tobytes())
    shape: tuple[int, ...] = ()
    with tempfile.TemporaryFile(buffering=0) as file:
        for done, image in enumerate(images, start=1):
            shape = shape or image.shape
            if image.shape != shape or image.dtype != np.uint8:
                raise ValueError(f"decode gave {image.dtype} {image.shape} after uint8 {shape}")
            data = image.tobytes()
            digest.update(data)
            _append(file, data, need=count * len(data))
            progress("decoding images", done, count)
        return np.memmap(file, dtype=np.uint8, mode="r", shape=(count, *shape)), digest.hexdigest()


def _append(file: io.FileIO, data: bytes, *, need: int) -> None:
    left = memoryview(data)
    try:
        while left:
            left = left[file.write(left) :]
    except OSError as error:
        raise OutputError(
            f"cannot keep the decoded images, {need / 1e9:.1f} GB, in {tempfile.gettempdir()}: "
            f"{error.strerror}; free some space or point TMPDIR to a larger disk"
        ) from error


def listed(faults: Sequence[str]) -> str:
    """One indented line per fault, the first ten of them, and how many more there are."""
    lines = [f"  {fault}" for fault in faults[:NAMED_FAULTS]]
    if len(faults) > NAMED_FAULTS:
        lines.append(f"  ... and {len(faults) - NAMED_FAULTS} more")
    return "\n".join(lines)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:NAMED_FAULTS])
    more = f" and {len(names) - NAMED_FAULTS} more" if len(names) > NAMED_FAULTS else ""
    return f"class folder{'s' if len(names) > 1 else ''} {shown}{more}"

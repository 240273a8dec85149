"""Labelled images to train on: a folder of class folders, decoded once to a file on disk.

Each image is decoded once, not once an epoch, and a data set may be larger than memory. One error
lists everything that is wrong with a data set.
"""

import hashlib
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
    """Find the training folder of a data set and, where there is one, the validation folder.

    They are folders in `root` where all folders have the names of a split, among them `test`,
    which is not read; else `root` itself holds the class folders.
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
    """List the classes of a folder: the names of the folders in it, sorted."""
    names = tuple(folder.name for folder in _folders(root))
    if len(names) < 2:
        found = f"only the folder {names[0]!r}" if names else "no folders"
        raise DataError(
            f"cannot train on {root}: found {found} in it, expected one folder of images for "
            "each of at least 2 classes"
        )
    return names


def read_folder(
    root: Path, preprocess: Preprocess, labels: tuple[str, ...], progress: Progress = silent
) -> LabelledImages:
    """Read a folder that holds one folder of images per class.

    The images of a class are all images in its folder and below, as for torchvision's
    `ImageFolder`. `labels` are the classes of the training images; for validation, some may be
    missing in `root`.
    """
    folders = _folders(root)
    unknown = [folder.name for folder in folders if folder.name not in labels]
    if unknown:
        raise DataError(
            f"cannot validate on {root}: the training folder has no images of {len(unknown)} of "
            f"its class folders{listed(unknown)}",
        )
    stray = [p for p in root.iterdir() if p.is_file() and not p.name.startswith(".")]
    files = {folder.name: split_files(folder) for folder in folders}
    empty = [name for name, (images, _) in files.items() if not images] if files else labels
    if empty:
        raise DataError(
            f"cannot train on {root}: {len(empty)} of its class folders hold no images "
            f"({', '.join(SUFFIXES)}){listed(empty)}",
            hint="add images or remove the folders",
        )
    paths, targets = [], []
    for name, (images, others) in files.items():
        paths += images
        targets += [labels.index(name)] * len(images)
        stray += others
    data = spool(_decoded(paths, root, preprocess), targets, labels, progress)
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
    """Write images of one shape to an unnamed temporary file, mapped into memory read-only."""
    classes = np.array(targets, dtype=np.int64)
    count, shape, size = len(classes), (), 0
    digest = hashlib.sha256(classes.tobytes())
    try:
        with tempfile.TemporaryFile() as file:
            for done, image in enumerate(images, start=1):
                data, shape, size = image.tobytes(), image.shape, image.nbytes
                digest.update(data)
                file.write(data)
                progress("decoding images", done, count)
            file.flush()
            pixels = np.memmap(file, dtype=np.uint8, mode="r", shape=(count, *shape))
    except BrokenPipeError:
        raise  # of the terminal or pipe that shows the progress
    except OSError as error:
        raise OutputError(
            f"cannot write the decoded images, {count * size / 1e9:.1f} GB, to "
            f"{tempfile.gettempdir()}: {error.strerror}",
            hint="free some space, or set TMPDIR to a folder on a larger disk",
        ) from error
    return LabelledImages(images=pixels, targets=classes, labels=labels, sha256=digest.hexdigest())


def listed(items: Sequence[str]) -> str:
    """Return the first `MAX_LISTED` items, each on an indented line, and the number of others."""
    others = len(items) - MAX_LISTED
    lines = [*items[:MAX_LISTED], *([f"... and {others} more"] if others > 0 else [])]
    return "".join(f"\n  {line}" for line in lines)

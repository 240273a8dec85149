"""Which files are images, and which images a folder, a pattern or a list stands for."""

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from vit_export.artifact.preprocess import Preprocess
from vit_export.errors import DataError, ImageError
from vit_export.images.decode import BYTES, SUFFIXES, ImageSource, Pixels, is_pillow_image
from vit_export.images.prepare import resize_and_crop

MAX_USER_PICTURES = 16  # so that a golden file stays a few MB
WILDCARDS = frozenset("*?[")
Images: TypeAlias = "ImageSource | Iterable[ImageSource]"


def is_image_file(path: Path) -> bool:
    """Whether a path is a regular file with an image's suffix, and not a hidden one."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def split_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """List the images in a folder and below, and all other files, each in sorted order.

    Links to folders are followed. Files and folders whose name starts with a dot are skipped.
    """
    images: list[Path] = []
    others: list[Path] = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(parent, name) for name in names if not name.startswith(".")):
            (images if is_image_file(path) else others).append(path)
    return sorted(images), sorted(others)


def list_images(source: str | os.PathLike[str]) -> list[Path]:
    """List the image files that a path stands for.

    Args:
        source: A folder: all images in it and below, in sorted order. A pattern such as
            `"photos/**/*.jpg"`: the images that match, in sorted order. Any other path, or one
            that exists: this path alone, whatever its suffix.
    """
    if not os.fspath(source):
        raise ImageError(
            "an image was given as an empty path ''",
            hint="give a file, a folder or a pattern ('.' is the current folder)",
        )
    path = Path(source)
    if path.is_dir():
        images, _ = split_files(path)
    elif _is_pattern(path):
        images = sorted(filter(is_image_file, map(Path, glob.glob(str(path), recursive=True))))
    else:
        return [path]
    if images:
        return images
    found = "holds no images" if path.is_dir() else "no image matches this pattern"
    raise DataError(f"{path}: {found} ({', '.join(SUFFIXES)})")


def spread(count: int, most: int) -> NDArray[np.int64]:
    """Choose at most `most` of `count` images: their indices, evenly spread from first to last."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)


def is_one_image(images: object) -> bool:
    """Whether an argument is one image, not many.

    One image: the path of a file, bytes, a file object, a Pillow image, an array of 2 or 3
    dimensions. Many: a folder, a pattern, an array of 4 dimensions, any other iterable.
    """
    if isinstance(images, str | os.PathLike):
        path = Path(images)
        return not os.fspath(images) or (not path.is_dir() and not _is_pattern(path))
    if isinstance(images, np.ndarray):
        return images.ndim != 4
    is_content = isinstance(images, BYTES) or hasattr(images, "read") or is_pillow_image(images)
    return is_content or not isinstance(images, Iterable)


def iterate_images(images: Images) -> Iterator[ImageSource]:
    """Yield images one by one; folders and patterns, also inside a list, yield their files."""
    sources = [images] if is_one_image(images) or isinstance(images, str | os.PathLike) else images
    for source in cast("Iterable[ImageSource]", sources):
        if isinstance(source, str | os.PathLike):
            yield from list_images(source)
        else:
            yield source


def _is_pattern(path: Path) -> bool:
    return not WILDCARDS.isdisjoint(str(path)) and not os.path.lexists(path)


def user_pictures(source: str | os.PathLike[str], preprocess: Preprocess) -> Pixels:
    """Prepare a few of the user's images for a golden file, uint8 (S, H, W, C)."""
    files = list_images(source)
    chosen = spread(len(files), MAX_USER_PICTURES)
    return np.stack([resize_and_crop(files[i], preprocess) for i in chosen])

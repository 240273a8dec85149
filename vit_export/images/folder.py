"""Which files are images, and which images a folder, a pattern or a list means."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np

from vit_export.artifact.golden import UInt8
from vit_export.artifact.manifest import Preprocess
from vit_export.errors import DataError
from vit_export.images.prepare import ImageSource, resize_and_crop

MOST = 16  # pictures of the user in a golden file, which so stays a few MB
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
WILDCARDS = frozenset("*?[")
Images: TypeAlias = "ImageSource | Iterable[ImageSource]"
PathLike: TypeAlias = "str | os.PathLike[str]"


def is_image_file(path: Path) -> bool:
    """Whether a file counts as an image where a folder or a pattern is searched.

    It is a regular file (or a link to one), its name has an image's suffix, and does not start
    with a dot.
    """
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def image_files(folder: Path) -> list[Path]:
    """List the images in a folder and below, in sorted order.

    Raises:
        DataError: There is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of images")
    files = sorted(filter(is_image_file, folder.rglob("*")))
    if not files:
        raise DataError(f"{folder}: holds no images ({', '.join(sorted(SUFFIXES))})")
    return files


def list_images(source: PathLike) -> list[Path]:
    """List the image files that a path means.

    Args:
        source: A folder: all images in it and below, in sorted order. A pattern, e.g.
            `"photos/**/*.jpg"`, that is not itself a file's name: the images that match, in
            sorted order. Anything else: this path alone, whatever its suffix.

    Raises:
        DataError: No image in the folder, or none that matches.
    """
    path = Path(source)
    if path.is_dir():
        return image_files(path)
    if not _is_pattern(path):
        return [path]
    matches = map(Path, glob.glob(str(path), recursive=True))
    if files := sorted(filter(is_image_file, matches)):
        return files
    raise DataError(f"{path}: no image matches ({', '.join(sorted(SUFFIXES))})")


def is_one_image(images: object) -> bool:
    """Whether an argument is one image, not many.

    One image: the path of a file, bytes, a file object, a Pillow image, an array of 2 or 3
    dimensions. Many: a folder, a pattern, an array of 4 dimensions, any other iterable.
    """
    if isinstance(images, str | os.PathLike):
        return not Path(images).is_dir() and not _is_pattern(Path(images))
    if isinstance(images, np.ndarray):
        return images.ndim != 4
    pillow = sys.modules.get("PIL.Image")  # whoever has a Pillow image has imported Pillow
    is_pillow = pillow is not None and isinstance(images, pillow.Image)
    is_bytes = isinstance(images, bytes | bytearray | memoryview)
    return is_pillow or is_bytes or hasattr(images, "read") or not isinstance(images, Iterable)


def iterate_images(images: Images) -> Iterator[ImageSource]:
    """Yield images one by one; folders and patterns, also those in a list, give their files.

    Raises:
        DataError: A folder or pattern without images.
    """
    if isinstance(images, str | os.PathLike):
        yield from list_images(images)
    elif is_one_image(images):
        yield cast("ImageSource", images)
    else:
        for image in cast("Iterable[ImageSource]", images):
            if isinstance(image, str | os.PathLike):
                yield from list_images(image)
            else:
                yield image


def _is_pattern(path: Path) -> bool:
    return not WILDCARDS.isdisjoint(str(path)) and not path.exists()


def user_pictures(folder: Path, preprocess: Preprocess, *, before: UInt8) -> UInt8:
    """Join synthetic pictures and a deterministic choice of the user's, uint8 (S, H, W, C).

    Raises:
        DataError: There is no image.
        ImageError: One cannot be read.
    """
    files = image_files(folder)
    chosen = np.unique(np.linspace(0, len(files) - 1, min(MOST, len(files))).round().astype(int))
    return np.concatenate([before, *(resize_and_crop(files[i], preprocess)[None] for i in chosen)])

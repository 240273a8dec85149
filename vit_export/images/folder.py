"""The user's own pictures, for the golden file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vit_export.artifact.golden import UInt8
from vit_export.artifact.manifest import Preprocess
from vit_export.errors import DataError
from vit_export.images.prepare import resize_and_crop

MOST = 16  # pictures; the golden file stays a few MB
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})


def image_files(folder: Path) -> list[Path]:
    """Images in a folder and below, in a fixed order.

    Raises:
        DataError: There is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of images")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise DataError(f"{folder}: holds no images ({', '.join(sorted(SUFFIXES))})")
    return files


def user_pictures(folder: Path, preprocess: Preprocess, *, before: UInt8) -> UInt8:
    """Join synthetic pictures and a deterministic choice of the user's, uint8 (S, H, W, C).

    Raises:
        DataError: There is no image.
        ImageError: One cannot be read.
    """
    files = image_files(folder)
    chosen = np.unique(np.linspace(0, len(files) - 1, min(MOST, len(files))).round().astype(int))
    return np.concatenate([before, *(resize_and_crop(files[i], preprocess)[None] for i in chosen)])

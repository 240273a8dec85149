"""Real images: how often a narrower artifact names another class than the fp32 one.

numpy and a runner only. Images are decoded batch by batch, so a folder may be of any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vit_export.artifact.manifest import LOGITS, Preprocess, TensorSpec
from vit_export.errors import DataError
from vit_export.images.digits_csv import read_digits, read_unlabelled_digits
from vit_export.images.folder import image_files
from vit_export.images.prepare import prepare_batch, resize_and_crop
from vit_export.progress import Progress, silent
from vit_export.runner import Runner, fixed_batch, run_filled

BATCH = 32
LABEL = "label"  # first column of a digits CSV with labels


@dataclass(frozen=True)
class RealImages:
    """Images to measure on.

    Attributes:
        source: Base name of where they came from.
        images: Files, or uint8 (S, H, W, C) at the model's size.
        targets: Class numbers int64 (S,); `None` where the images have no labels.
    """

    source: str
    images: Sequence[Path] | NDArray[np.uint8]
    targets: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def some(self, most: int) -> RealImages:
        """At most so many of them, spread evenly."""
        if len(self) <= most:
            return self
        chosen = np.linspace(0, len(self) - 1, most).round().astype(int)
        images = self.images
        return RealImages(
            self.source,
            images[chosen] if isinstance(images, np.ndarray) else [images[i] for i in chosen],
            None if self.targets is None else self.targets[chosen],
        )


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Two artifacts on the same real images.

    Attributes:
        images: How many.
        agreement: Share of them with the same top-1 class.
        top1: Share that the artifact names right; `None` without labels.
        reference_top1: Share that the fp32 artifact names right.
    """

    images: int
    agreement: float
    top1: float | None = None
    reference_top1: float | None = None

    @property
    def drop(self) -> float | None:
        """Percentage points of top-1 accuracy lost; negative where it is better."""
        if self.top1 is None or self.reference_top1 is None:
            return None
        return 100 * (self.reference_top1 - self.top1)

    def __str__(self) -> str:
        text = f"{self.images} real images: top-1 agrees on {100 * self.agreement:.2f} %"
        if self.top1 is not None and self.reference_top1 is not None:
            text += (f", {100 * self.top1:.2f} % right "
                     f"(fp32: {100 * self.reference_top1:.2f} %)")  # fmt: skip
        return text


def read_images(path: Path, preprocess: Preprocess, labels: Sequence[str]) -> RealImages:
    """Find images in a folder or a digits CSV.

    They have labels in a CSV that has a `label` column, and in a folder whose every image lies
    in a subfolder that is called as one of the artifact's classes.

    Raises:
        DataError: There are none, or they cannot be read.
    """
    if path.suffix.lower() == ".csv":
        return _read_csv(path, preprocess)
    files = image_files(path)
    number = {label: i for i, label in enumerate(labels)}
    classes = [file.relative_to(path).parts[0] for file in files]
    labelled = all(name in number for name in classes)
    targets = np.array([number[name] for name in classes], dtype=np.int64) if labelled else None
    return RealImages(path.name, files, targets)


def gives_classes(logits: TensorSpec) -> bool:
    """Whether an output is (batch, classes) of at least two classes."""
    return len(logits.shape) == 2 and logits.shape[1] != 1


def _read_csv(path: Path, preprocess: Preprocess) -> RealImages:
    def decode(image: Path | NDArray[np.uint8]) -> NDArray[np.uint8]:
        return resize_and_crop(image, preprocess)

    if not path.is_file():
        raise DataError(f"{path}: no such file")
    with path.open(encoding="utf-8", errors="replace") as stream:
        has_label = stream.readline().partition(",")[0].strip() == LABEL
    if not has_label:
        return RealImages(path.name, read_unlabelled_digits(path, decode=decode))
    found = read_digits(path, decode=decode)
    return RealImages(path.name, found.images, found.targets)


def top1(
    runner: Runner, images: RealImages, preprocess: Preprocess, *, progress: Progress = silent
) -> NDArray[np.int64]:
    """The likeliest class of every image, int64 (S,); -1 where a logit is not finite."""
    spec = runner.inputs[0]
    size = fixed_batch(spec) or BATCH
    classes = []
    for start in range(0, len(images), size):
        progress(f"{images.source} on {runner.provider}", start, len(images))
        batch = prepare_batch(images.images[start : start + size], preprocess)
        logits = run_filled(runner, {spec.name: batch.astype(spec.dtype)})[LOGITS]
        finite = np.isfinite(logits).all(axis=1)
        classes.append(np.where(finite, logits.argmax(axis=1), -1))
    return np.concatenate(classes).astype(np.int64)


def compare(
    found: NDArray[np.int64], reference: NDArray[np.int64], targets: NDArray[np.int64] | None
) -> Accuracy:
    """Agreement of two artifacts' classes, and their accuracy where there are labels."""
    shares = {} if targets is None else {
        "top1": float((found == targets).mean()),
        "reference_top1": float((reference == targets).mean()),
    }  # fmt: skip
    return Accuracy(images=len(found), agreement=float((found == reference).mean()), **shares)

"""Real images: how often a converted artifact predicts another class than the fp32 one.

Images are decoded batch by batch, so a folder may be of any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vit_export.artifact.manifest import Preprocess, TensorSpec
from vit_export.artifact.vocabulary import LOGITS
from vit_export.errors import DataError
from vit_export.images.digits_csv import read_digits, read_unlabelled_digits
from vit_export.images.folder import image_files
from vit_export.images.prepare import prepare_batch
from vit_export.progress import Progress, silent
from vit_export.runner import Runner, batch_size, run_filled

BATCH = 32
LABEL = "label"  # first column of a digits CSV with labels


@dataclass(frozen=True)
class RealImages:
    """Images to measure on.

    Attributes:
        source: Name of their folder or file.
        images: Files, or uint8 (S, H, W, C) at the model's size.
        targets: Class numbers int64 (S,); `None` where the images have no labels.
    """

    source: str
    images: Sequence[Path] | NDArray[np.uint8]
    targets: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def some(self, most: int) -> RealImages:
        """Return at most `most` of the images, spread evenly."""
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
    """Top-1 classes of a converted artifact and of the fp32 one on the same real images.

    Attributes:
        images: Number of images.
        agreement: Share of images with the same top-1 class.
        top1: Top-1 accuracy of the converted artifact; `None` without labels.
        reference_top1: Top-1 accuracy of the fp32 artifact; `None` without labels.
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
    """Read images from a folder or a digits CSV.

    They have labels in a CSV with a `label` column, and in a folder where every image is in a
    subfolder named like one of the artifact's classes.

    Args:
        path: The folder or CSV file.
        preprocess: How images are prepared.
        labels: Class names of the artifact.

    Raises:
        DataError: There are no images, they cannot be read, or a subfolder has the name of two
            classes.
    """
    if path.suffix.lower() == ".csv":
        return _read_csv(path, preprocess)
    files = image_files(path)
    folders = [file.relative_to(path).parts[0] for file in files]
    if not set(folders) <= set(labels):
        return RealImages(path.name, files)
    number = {label: i for i, label in enumerate(labels)}
    for name in sorted(set(folders)):
        if labels.count(name) > 1:  # ImageNet has two classes "crane"
            first, second = [i for i, label in enumerate(labels) if label == name][:2]
            raise DataError(
                f"{path / name}: classes {first} and {second} are both called {name!r}, so the "
                "class of these images is ambiguous",
                hint="export the model with unique --labels, or rename the folder so that it is "
                "no class: the images are then compared without labels",
            )
    return RealImages(path.name, files, np.array([number[name] for name in folders], np.int64))


def gives_classes(logits: TensorSpec) -> bool:
    """Whether an output has the shape (batch, classes), with at least two classes."""
    return len(logits.shape) == 2 and logits.shape[1] != 1


def _read_csv(path: Path, preprocess: Preprocess) -> RealImages:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    with path.open(encoding="utf-8", errors="replace") as stream:
        has_label = stream.readline().partition(",")[0].strip() == LABEL
    if not has_label:
        return RealImages(path.name, read_unlabelled_digits(path, preprocess))
    digits = read_digits(path, preprocess)
    return RealImages(path.name, digits.images, digits.targets)


def top1(
    runner: Runner, images: RealImages, preprocess: Preprocess, *, progress: Progress = silent
) -> NDArray[np.int64]:
    """Return the top-1 class of every image, int64 (S,); -1 where a logit is not finite."""
    spec = runner.inputs[0]
    size = batch_size(runner, BATCH)
    classes = []
    for start in range(0, len(images), size):
        progress(f"{images.source} on {runner.provider}", start, len(images))
        batch = prepare_batch(images.images[start : start + size], preprocess)
        logits = run_filled(runner, {spec.name: batch.astype(spec.dtype)})[LOGITS]
        finite = np.isfinite(logits).all(axis=1)
        classes.append(np.where(finite, logits.argmax(axis=1), -1))
    return np.concatenate(classes).astype(np.int64)


def compare_classes(
    classes: NDArray[np.int64], reference: NDArray[np.int64], targets: NDArray[np.int64] | None
) -> Accuracy:
    """Return how far the classes of two artifacts agree, and their accuracy where known."""
    agreement = float((classes == reference).mean())
    if targets is None:
        return Accuracy(images=len(classes), agreement=agreement)
    return Accuracy(
        images=len(classes),
        agreement=agreement,
        top1=float((classes == targets).mean()),
        reference_top1=float((reference == targets).mean()),
    )

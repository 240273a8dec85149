"""Real images: how often a converted artifact predicts another class than the fp32 one.

Images are decoded batch by batch, so a folder may be of any size.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vit_export.artifact.manifest import Manifest
from vit_export.artifact.preprocess import Preprocess
from vit_export.artifact.vocabulary import LOGITS
from vit_export.errors import DataError
from vit_export.gate.distance import Array
from vit_export.images.digits_csv import read_digits
from vit_export.images.folder import list_images, spread
from vit_export.images.prepare import prepare_batch
from vit_export.progress import Progress, silent
from vit_export.runner import Runnable, Runner, batch_size, run_filled

BATCH = 32


@dataclass(frozen=True)
class RealImages:
    """Images to measure on."""

    source: str  # name of their folder, pattern or file
    images: Sequence[Path] | NDArray[np.uint8]  # files, or (S, H, W, C) at the model's size
    targets: NDArray[np.int64] | None = None  # class numbers (S,); None without labels

    def __len__(self) -> int:
        return len(self.images)

    def some(self, most: int) -> "RealImages":
        """Return at most `most` of the images, spread evenly."""
        chosen, images = spread(len(self), most), self.images
        return RealImages(
            self.source,
            images[chosen] if isinstance(images, np.ndarray) else [images[i] for i in chosen],
            None if self.targets is None else self.targets[chosen],
        )


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Top-1 classes of a converted artifact and of the fp32 one on the same real images."""

    images: int
    agreement: float  # share of images with the same top-1 class
    top1: float | None = None  # accuracy of the converted artifact; None without labels
    reference_top1: float | None = None  # accuracy of the fp32 artifact

    @property
    def drop(self) -> float | None:
        """Percentage points of top-1 accuracy lost; negative where it is better."""
        if self.top1 is None or self.reference_top1 is None:
            return None
        return 100 * (self.reference_top1 - self.top1)

    def __str__(self) -> str:
        return self.text("fp32")

    def text(self, reference: str) -> str:
        """Return the figures as a sentence; `reference` names what was compared with."""
        text = f"{self.images} real images: top-1 agrees on {100 * self.agreement:.2f} %"
        if self.top1 is not None and self.reference_top1 is not None:
            text += (f", {100 * self.top1:.2f} % right "
                     f"({reference}: {100 * self.reference_top1:.2f} %)")  # fmt: skip
        return text


def read_images(
    source: str | os.PathLike[str], preprocess: Preprocess, labels: Sequence[str]
) -> RealImages:
    """Read images from a digits CSV, or from whatever `list_images` takes.

    They have labels in a CSV with a `label` column, and where every image is in a folder named
    like one of the artifact's classes (`labels`): below the given folder, or below the first folder
    of a pattern such as `"photos/*/*.jpg"`. DataError where there are no images, or a folder has
    the name of two classes.
    """
    path = Path(source)
    if path.suffix.lower() == ".csv":
        digits = read_digits(path, preprocess)
        return RealImages(path.name, digits.images, digits.targets if digits.labels else None)
    files = list_images(path)
    if files == [path] and not path.exists():
        raise DataError(f"{path}: no such folder or file of images")
    root = next(parent for parent in (path, *path.parents) if parent.is_dir())
    folders = [file.relative_to(root).parts[0] for file in files]
    if not set(folders) <= set(labels):
        return RealImages(path.name, files)
    for name in sorted(set(folders)):
        if labels.count(name) > 1:  # ImageNet has two classes "crane"
            first, second = [i for i, label in enumerate(labels) if label == name][:2]
            raise DataError(
                f"{root / name}: classes {first} and {second} are both called {name!r}, so the "
                "class of these images is ambiguous",
                hint="export the model with unique --labels, or rename the folder so that it is "
                "no class: the images are then compared without labels",
            )
    return RealImages(path.name, files, np.array([labels.index(name) for name in folders]))


def has_classes(manifest: Manifest) -> bool:
    """Whether an artifact has logits (batch, classes), with at least two classes."""
    logits = (spec.shape for spec in manifest.outputs if spec.name == LOGITS)
    return any(len(shape) == 2 and shape[1] != 1 for shape in logits)


def top1(
    runner: Runner, images: RealImages, preprocess: Preprocess, *, progress: Progress = silent
) -> NDArray[np.int64]:
    """Return the top-1 class of every image, int64 (S,); -1 where a logit is not finite."""
    classes = []
    for logits in _batches(runner, images, preprocess, progress):
        finite = np.isfinite(logits).all(axis=1)
        classes.append(np.where(finite, logits.argmax(axis=1), -1))
    return np.concatenate(classes).astype(np.int64)


def real_logits(
    runner: Runnable, images: RealImages, preprocess: Preprocess, *, progress: Progress = silent
) -> NDArray[np.float32]:
    """Return the logits of every image, float32 (S, num_classes)."""
    batches = list(_batches(runner, images, preprocess, progress))
    return np.concatenate(batches).astype(np.float32)


def _batches(
    runner: Runnable, images: RealImages, preprocess: Preprocess, progress: Progress
) -> Iterator[Array]:
    """Yield the logits of one batch of images after the other."""
    spec = runner.inputs[0]
    size = batch_size(runner, BATCH)
    for start in range(0, len(images), size):
        progress(f"{images.source} on {runner.provider}", start, len(images))
        batch = prepare_batch(images.images[start : start + size], preprocess)
        yield run_filled(runner, {spec.name: batch.astype(spec.dtype)})[LOGITS]


def compare_classes(
    classes: NDArray[np.int64], reference: NDArray[np.int64], targets: NDArray[np.int64] | None
) -> Accuracy:
    """Return how far the classes of two artifacts agree, and their accuracy where known."""
    return Accuracy(
        images=len(classes),
        agreement=float((classes == reference).mean()),
        top1=None if targets is None else float((classes == targets).mean()),
        reference_top1=None if targets is None else float((reference == targets).mean()),
    )

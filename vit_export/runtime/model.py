"""An image in, labelled predictions out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_export.artifact.manifest import LOGITS, Preprocess
from vit_export.errors import ArtifactError, GateError, ImageError, InputError, UsageError
from vit_export.images.prepare import prepare_batch
from vit_export.runner import Runner, fixed_batch, run_filled
from vit_export.runtime.checks import check_range

MAX_BATCH = 32


@dataclass(frozen=True)
class Prediction:
    """One class that an image may belong to.

    Attributes:
        index: Class number.
        label: Its name; `"class 7"` where the artifact carries no labels.
        score: Softmax probability.
    """

    index: int
    label: str
    score: float


class Model:
    """A runner, and what the manifest says about images and classes.

    Attributes:
        runner: What runs the artifact.
        preprocess: How images are prepared; `None` where nobody said.
        labels: Class names; empty where nobody said.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        preprocess: Preprocess | None = None,
        labels: Sequence[str] | None = None,
    ) -> None:
        self.runner = runner
        self.manifest = manifest = runner.manifest
        self.preprocess = preprocess or (manifest.preprocess if manifest else None)
        given = labels if labels is not None else (manifest.labels if manifest else ())
        self.labels = tuple(given)

    @property
    def provider(self) -> str:
        """What really runs the model, e.g. `"cpu"`."""
        return self.runner.provider

    def run(self, pixel_values: Any) -> NDArray[Any]:
        """Compute the first output.

        Args:
            pixel_values: Normalised images, float32 (B, C, H, W): a numpy array, or a tensor
                that speaks dlpack; or a mapping for a model of several inputs.

        Returns:
            float32 (B, num_classes), or what the model's first output is.

        Raises:
            InputError: A wrong dtype or shape, or values that were not normalised.
        """
        spec = self.runner.inputs[0]
        feeds = pixel_values if isinstance(pixel_values, Mapping) else {spec.name: pixel_values}
        if self.preprocess is not None:
            check_range(spec, feeds.get(spec.name), self.preprocess)
        return self.runner.run(feeds)[self.runner.outputs[0].name]

    def classify(self, images: Any, *, top: int = 5) -> Any:
        """Name what is in an image, or in each of many.

        Args:
            images: A path, a Pillow image, or a uint8 array (H, W) or (H, W, C); or a list of
                such, or a uint8 array (B, H, W, C).
            top: How many classes, the likeliest first.

        Returns:
            A list of `top` Predictions; for many images a list of such lists.

        Raises:
            ImageError: An image cannot be read, or there is none.
            GateError: The model gives NaN or infinity for an image.
            ArtifactError: The file says nothing of how to prepare images, or has no logits.
        """
        if top < 1:
            raise InputError(f"top={top}: must be at least 1")
        single = not _is_many(images)
        results = list(self._classify_each([images] if single else images, top))
        return results[0] if single else results

    def logits(self, images: Iterable[Any]) -> NDArray[np.float64]:
        """Prepare images and compute their logits, float64 (B, num_classes).

        Raises:
            GateError: The model gives NaN or infinity for an image.
            ImageError: An image cannot be read, or there is none.
        """
        preprocess = self._needed_preprocess()
        batches = []
        size = fixed_batch(self.runner.inputs[0]) or MAX_BATCH
        pending = list(images)
        if not pending:
            raise ImageError("no images were given, expected at least one")
        for start in range(0, len(pending), size):
            batch = prepare_batch(pending[start : start + size], preprocess, first=start)
            rows = self._run_batch(batch)
            finite = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
            if not finite.all():
                index = start + int(finite.argmin())
                raise GateError(self._not_finite(index, pending[index]))
            batches.append(rows)
        return np.concatenate(batches).astype(np.float64)

    def _classify_each(self, images: Iterable[Any], top: int) -> Iterable[list[Prediction]]:
        output = self.runner.outputs[0]
        if len(output.shape) != 2 or (output.name != LOGITS and self.manifest is not None):
            raise ArtifactError(
                f"{self.runner.path.name}: its first output ({output}) is no logits (batch, "
                "classes); export it with --outputs logits to classify, or call run()"
            )
        classes = output.shape[1]
        if self.labels and isinstance(classes, int) and len(self.labels) != classes:
            raise UsageError(f"{len(self.labels)} labels for a model of {classes} classes")
        for row in softmax(self.logits(images)):
            order = np.argsort(-row, kind="stable")[:top]
            yield [Prediction(int(i), self._label(int(i)), float(row[i])) for i in order]

    def _not_finite(self, index: int, image: Any) -> str:
        name = f" ({image})" if isinstance(image, str | os.PathLike) else ""
        return (
            f"{self.runner.path.name} on {self.provider!r} gives NaN or infinity for image {index}"
            f"{name}, so it names no class; measure it on this provider: vit-export validate "
            f"{self.runner.path} --provider {self.provider}"
        )

    def _label(self, index: int) -> str:
        return self.labels[index] if index < len(self.labels) else f"class {index}"

    def _needed_preprocess(self) -> Preprocess:
        if self.preprocess is None:
            raise ArtifactError(
                f"{self.runner.path.name}: the file does not say how to prepare an image (it has "
                "no vit-export manifest); give it with --mean, --std, --crop-pct and "
                "--interpolation, or load(..., preprocess=Preprocess(size=..., mean=..., "
                "std=...)), or export the model with vit-export"
            )
        return self.preprocess

    def _run_batch(self, batch: NDArray[np.float32]) -> NDArray[Any]:
        """Return the first output for prepared images, in the dtype that the graph takes."""
        spec = self.runner.inputs[0]
        outputs = run_filled(self.runner, {spec.name: batch.astype(spec.dtype)})
        return outputs[self.runner.outputs[0].name]


def _is_many(images: Any) -> bool:
    if isinstance(images, np.ndarray):
        return images.ndim == 4
    return isinstance(images, list | tuple)


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities along the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: NDArray[np.float64] = shifted / shifted.sum(axis=-1, keepdims=True)
    return probabilities

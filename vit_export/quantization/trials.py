"""Trials: convert an artifact with some layers in fp32, and measure the error."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vit_export.artifact.golden import Golden
from vit_export.artifact.manifest import Conversion, Manifest
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.gate.accuracy import Accuracy, RealImages, compare_classes, top1
from vit_export.gate.distance import Measured, ratio, references
from vit_export.gate.tolerances import TOLERANCES
from vit_export.gate.trace import golden_feeds
from vit_export.gate.validate import gated_always
from vit_export.graph.half.emulate import to_rounded
from vit_export.quantization.prepare import Target
from vit_export.quantization.search import LIMIT
from vit_export.runner import Runner, batch_rows
from vit_export.runtime.onnxruntime.runner import OrtRunner

FEW_IMAGES = 128  # real images that are compared in each trial


@dataclass(kw_only=True)
class AccuracyLimits:
    """Accuracy limits on real images."""

    images: RealImages | None = None
    gated: bool = True  # whether the limits apply; the classes of random weights mean nothing
    max_drop: float | None = None  # in percentage points of accuracy; needs labels

    def error_ratio(self, accuracy: Accuracy, precision: str) -> float:
        """Return the loss of accuracy as a multiple of what the limits allow."""
        if not self.gated:
            return 0.0
        min_agreement = TOLERANCES[precision].min_agreement or 0.0
        ratios = [ratio(1 - accuracy.agreement, 1 - min_agreement)]
        if self.max_drop is not None and accuracy.drop is not None:
            ratios.append(ratio(max(accuracy.drop, 0.0), self.max_drop))
        return max(ratios)

    def failures(self, accuracy: Accuracy, precision: str) -> list[str]:
        """Return why a gate fails by these limits; empty where it passes."""
        if self.error_ratio(accuracy, precision) <= 1:
            return []
        min_agreement = TOLERANCES[precision].min_agreement or 0.0
        expected = f"expected agreement on at least {100 * min_agreement:g} %"
        if self.max_drop is not None:
            expected += f" and a drop of at most {self.max_drop:g} points"
        return [f"{accuracy}, {expected}"]


@dataclass(kw_only=True)
class TrialConverter:
    """Converts an fp32 artifact in a folder, again and again, and measures each conversion."""

    source: Path
    golden: Golden
    manifest: Manifest  # of the source, with the target's precision
    target: Target
    limits: AccuracyLimits
    folder: Path  # each trial overwrites the files of the one before
    all_images: bool = False  # compare all real images in each trial, not a few of them
    # results by the layers that stayed fp32, and classes of the source by number of images
    _error_ratios: dict[frozenset[str], float] = field(default_factory=dict)
    _source_classes: dict[int, NDArray[np.int64]] = field(default_factory=dict)

    def convert(self, keep: Collection[str]) -> tuple[Path, Conversion]:
        """Convert with some layers kept in fp32."""
        path = self.file("converted")
        return path, self.target.convert(self.source, path, keep=keep)

    def runner(self, converted: Path, *, expose: Collection[str] = ()) -> OrtRunner:
        """Return a runner that computes on this CPU what a conversion computes on a device."""
        path = converted
        if self.target.emulated:
            path = self.file("rounded")
            to_rounded(converted, path)
        return OrtRunner(path, provider="cpu", expose=expose)

    def error_ratio(self, keep: frozenset[str]) -> float:
        """Return the error with some layers in fp32, as a multiple of the tolerance."""
        if keep not in self._error_ratios:
            runner = self.runner(self.convert(keep)[0], expose=self._inner_tensors)
            error = golden_error_ratio(runner, self.golden, self.manifest)
            images = self.limits.images
            if error <= LIMIT and images is not None:
                images = images if self.all_images else images.some(FEW_IMAGES)
                accuracy = self.accuracy(runner, images)
                error = max(error, self.limits.error_ratio(accuracy, self.target.precision))
            runner.release()
            self._error_ratios[keep] = error
        return self._error_ratios[keep]

    def accuracy(self, runner: Runner, images: RealImages) -> Accuracy:
        """Compare the classes of a conversion with those of its source, which runs once."""
        preprocess = self.manifest.preprocess
        if preprocess is None:
            raise ValueError(f"the manifest of {self.source.name} has no image preparation")
        if len(images) not in self._source_classes:
            runner.release()  # one session at a time: each holds the weights
            source = OrtRunner(self.source, provider="cpu")
            self._source_classes[len(images)] = top1(source, images, preprocess)
            source.release()
        classes = top1(runner, images, preprocess)
        return compare_classes(classes, self._source_classes[len(images)], images.targets)

    def file(self, stage: str) -> Path:
        """Return a path named after the source, so that messages name the user's file."""
        path = self.folder / stage / self.source.name
        path.parent.mkdir(exist_ok=True)
        return path

    @cached_property
    def _inner_tensors(self) -> list[str]:
        """Tensors that the gate measures and that are no outputs."""
        file = OnnxFile.read(self.source)
        inner = file.values - {spec.name for spec in file.outputs}
        return [name for name in gated_always(self.golden) if name in inner]


def golden_error_ratio(runner: Runner, golden: Golden, manifest: Manifest) -> float:
    """Return the error of all outputs on the golden images as a multiple of the tolerance.

    Images of all sizes are measured, in batches of one size: each image twice, with different
    neighbours.
    """
    return max(_error_ratio_at_size(runner, part, manifest) for part in (golden, *golden.others))


def _error_ratio_at_size(runner: Runner, golden: Golden, manifest: Manifest) -> float:
    known = references(golden, TOLERANCES[manifest.precision])
    measured = {s.name: Measured(known[s.name]) for s in runner.outputs if s.name in known}
    feeds = golden_feeds(runner, golden, manifest.preprocess)
    size = manifest.inputs[0].fixed_batch or golden.samples
    batches = batch_rows(golden.samples, size)
    for rows in (*batches, *(batch[::-1] for batch in batches)):
        outputs = runner.run({name: x[rows] for name, x in feeds.items()})
        for name, result in measured.items():
            if result.add(rows, outputs[name]):
                return math.inf
    return max(result.error_ratio for result in measured.values())

"""Trials: convert an artifact with some layers in fp32, and measure the error."""

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vit_export.artifact.golden import Golden
from vit_export.artifact.manifest import Conversion, Manifest
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.vocabulary import HALF_PRECISIONS
from vit_export.gate.accuracy import Accuracy, RealImages, compare_classes, top1
from vit_export.gate.distance import Measured, ratio, references
from vit_export.gate.tolerances import TOLERANCES
from vit_export.gate.trace import golden_feeds
from vit_export.gate.validate import gated_always
from vit_export.graph.half.emulate import to_rounded
from vit_export.quantization.prepare import Prepared, scratch_file
from vit_export.quantization.search import LIMIT
from vit_export.runner import Runner, batch_rows
from vit_export.runtime.onnxruntime.runner import OrtRunner

FEW_IMAGES = 128  # real images that are compared in each trial


@dataclass(frozen=True, kw_only=True)
class AccuracyLimits:
    """Accuracy limits on real images."""

    images: RealImages | None
    max_changed: float  # share of the images whose class may change; infinite for random weights
    max_drop: float | None  # in percentage points of accuracy; needs labels

    def error_ratio(self, accuracy: Accuracy) -> float:
        """Return the loss of accuracy as a multiple of what the limits allow."""
        drop = max(accuracy.drop or 0.0, 0.0)
        allowed = math.inf if self.max_drop is None else self.max_drop
        return max(ratio(1 - accuracy.agreement, self.max_changed), ratio(drop, allowed))

    def __str__(self) -> str:
        text = f"expected agreement on at least {100 * (1 - self.max_changed):g} %"
        if self.max_drop is not None:
            text += f" and a drop of at most {self.max_drop:g} points"
        return text


@dataclass
class TrialConverter:
    """Converts an fp32 artifact in a folder, again and again, and measures each conversion."""

    prepared: Prepared
    golden: Golden
    manifest: Manifest  # of the source, with the precision to convert to
    limits: AccuracyLimits
    folder: Path  # each trial overwrites the files of the one before
    all_images: bool = False  # compare all real images in each trial, not a few of them
    _source_classes: dict[int, NDArray[np.int64]] = field(default_factory=dict)  # by image count

    def convert(self, keep: Collection[str]) -> tuple[Path, Conversion]:
        """Convert with some layers kept in fp32."""
        path = scratch_file(self.folder, "converted", self.prepared.source)
        return path, self.prepared.convert(self.prepared.source, path, keep=keep)

    def runner(self, converted: Path, *, expose: Collection[str] = ()) -> OrtRunner:
        """Return a runner that computes on this CPU what a conversion computes on a device."""
        path = converted
        if self.manifest.precision in HALF_PRECISIONS:  # a CPU skips roundings of them
            path = scratch_file(self.folder, "rounded", self.prepared.source)
            to_rounded(converted, path)
        return OrtRunner(path, provider="cpu", expose=expose)

    def error_ratio(self, keep: frozenset[str]) -> float:
        """Return the error with some layers in fp32, as a multiple of the tolerance."""
        source = OnnxFile.read(self.prepared.source)
        inner = source.values - {spec.name for spec in source.outputs}
        expose = [name for name in gated_always(self.golden) if name in inner]
        runner = self.runner(self.convert(keep)[0], expose=expose)
        error = golden_error_ratio(runner, self.golden, self.manifest)
        images = self.limits.images
        if error <= LIMIT and images is not None:
            images = images if self.all_images else images.some(FEW_IMAGES)
            error = max(error, self.limits.error_ratio(self.accuracy(runner, images)))
        runner.release()
        return error

    def accuracy(self, runner: Runner, images: RealImages) -> Accuracy:
        """Compare the classes of a conversion with those of its source, which runs once."""
        preprocess = self.manifest.preprocess
        if preprocess is None:
            raise ValueError(f"the manifest of {self.prepared.source.name} has no preprocess")
        if len(images) not in self._source_classes:
            runner.release()  # one session at a time: each holds the weights
            source = OrtRunner(self.prepared.source, provider="cpu")
            self._source_classes[len(images)] = top1(source, images, preprocess)
            source.release()
        classes = top1(runner, images, preprocess)
        return compare_classes(classes, self._source_classes[len(images)], images.targets)


def golden_error_ratio(runner: Runner, golden: Golden, manifest: Manifest) -> float:
    """Return the error of all outputs on the golden images as a multiple of the tolerance.

    Images of all sizes are measured, in batches of one size: each image twice, with different
    neighbours.
    """
    ratios = []
    for part in (golden, *golden.others):
        known = references(part, TOLERANCES[manifest.precision])
        measured = {s.name: Measured(known[s.name]) for s in runner.outputs if s.name in known}
        feeds = golden_feeds(runner, part, manifest.preprocess)
        size = manifest.inputs[0].fixed_batch or part.samples
        batches = batch_rows(part.samples, size)
        for rows in (*batches, *(batch[::-1] for batch in batches)):
            outputs = runner.run({name: x[rows] for name, x in feeds.items()})
            for name, result in measured.items():
                if result.add(rows, outputs[name]):
                    return math.inf
        ratios += [result.error_ratio for result in measured.values()]
    return max(ratios)

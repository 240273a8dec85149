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
from vit_export.artifact.manifest import Conversion, Manifest, Preprocess
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.gate.accuracy import Accuracy, RealImages, compare_classes, top1
from vit_export.gate.distance import Measured, ratio, references
from vit_export.gate.tolerances import TOLERANCES
from vit_export.gate.trace import golden_feeds
from vit_export.gate.validate import gated_always
from vit_export.graph.half.emulate import to_rounded
from vit_export.quantization.conversions import Target
from vit_export.quantization.search import LIMIT
from vit_export.runner import Runner, batch_rows, fixed_batch
from vit_export.runtime.onnxruntime.runner import OrtRunner

FEW_IMAGES = 128  # real images that are compared in each trial


@dataclass(kw_only=True)
class AccuracyLimits:
    """Accuracy limits on real images.

    Attributes:
        images: `None` without real images.
        gated: Whether the limits apply; the classes of random weights mean nothing.
        max_drop: Largest drop of accuracy in percentage points; of agreement without labels.
    """

    images: RealImages | None = None
    gated: bool = True
    max_drop: float | None = None

    def error_ratio(self, accuracy: Accuracy, precision: str) -> float:
        """Return the loss of accuracy as a multiple of what the limits allow."""
        if not self.gated:
            return 0.0
        min_agreement = TOLERANCES[precision].min_agreement or 0.0
        ratios = [ratio(1 - accuracy.agreement, 1 - min_agreement)]
        if self.max_drop is not None:
            lost = 100 * (1 - accuracy.agreement) if accuracy.drop is None else accuracy.drop
            ratios.append(ratio(max(lost, 0.0), self.max_drop))
        return max(ratios)


@dataclass(kw_only=True)
class TrialConverter:
    """Converts an fp32 artifact in a folder, again and again, and measures each conversion.

    Attributes:
        source: The fp32 artifact.
        golden: Its golden file.
        manifest: Manifest of the source, with the target's precision.
        target: The precision to convert to.
        limits: Accuracy limits on real images.
        folder: Folder for files; each trial overwrites those of the one before.
        all_images: Whether trials compare all real images, and not a few of them.
        error_ratios: Results so far, by the layers that stayed fp32.
    """

    source: Path
    golden: Golden
    manifest: Manifest
    target: Target
    limits: AccuracyLimits
    folder: Path
    all_images: bool = False
    error_ratios: dict[frozenset[str], float] = field(default_factory=dict)
    # classes of the source, by number of images
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
        if keep not in self.error_ratios:
            runner = self.runner(self.convert(keep)[0], expose=self._inner_tensors)
            error = golden_error_ratio(runner, self.golden, self.manifest)
            images = self.limits.images
            if error <= LIMIT and images is not None:
                images = images if self.all_images else images.some(FEW_IMAGES)
                accuracy = self.accuracy(runner, images)
                error = max(error, self.limits.error_ratio(accuracy, self.target.precision))
            runner.release()
            self.error_ratios[keep] = error
        return self.error_ratios[keep]

    def accuracy(self, runner: Runner, images: RealImages) -> Accuracy:
        """Compare the classes of a conversion with those of its source, which runs once."""
        if len(images) not in self._source_classes:
            runner.release()  # one session at a time: each holds the weights
            source = OrtRunner(self.source, provider="cpu")
            self._source_classes[len(images)] = top1(source, images, self._preprocess)
            source.release()
        classes = top1(runner, images, self._preprocess)
        return compare_classes(classes, self._source_classes[len(images)], images.targets)

    def file(self, stage: str) -> Path:
        """Return a path named after the source, so that messages name the user's file."""
        path = self.folder / stage / self.source.name
        path.parent.mkdir(exist_ok=True)
        return path

    @cached_property
    def _inner_tensors(self) -> list[str]:
        """Tensors that the gate measures and that are no outputs."""
        outputs = {spec.name for spec in self.manifest.outputs}
        values = OnnxFile.read(self.source).values
        return [n for n in gated_always(self.golden) if n not in outputs and n in values]

    @property
    def _preprocess(self) -> Preprocess:
        if self.manifest.preprocess is None:
            raise ValueError(f"the manifest of {self.source.name} has no image preparation")
        return self.manifest.preprocess


def golden_error_ratio(runner: Runner, golden: Golden, manifest: Manifest) -> float:
    """Return the error on the golden images as a multiple of the tolerance.

    All tensors and image sizes of the gate are measured, in batches of one size: each image twice,
    with different neighbours.
    """
    return max(_error_ratio_at_size(runner, part, manifest) for part in (golden, *golden.others))


def _error_ratio_at_size(runner: Runner, golden: Golden, manifest: Manifest) -> float:
    known = references(golden, TOLERANCES[manifest.precision])
    names = [spec.name for spec in manifest.outputs if spec.name in known]
    inner = [n for n in gated_always(golden) if n not in names and runner.has_tensor(n)]
    if not set(inner) <= {spec.name for spec in runner.outputs}:
        runner.release()  # one session at a time: each holds the weights
        runner = runner.expose(inner)
    feeds = golden_feeds(runner, golden, manifest.preprocess)
    size = fixed_batch(manifest.inputs[0]) or golden.samples
    measured = {name: Measured(known[name]) for name in (*names, *inner)}
    batches = batch_rows(golden.samples, size)
    for rows in (*batches, *(batch[::-1] for batch in batches)):
        outputs = runner.run({name: x[rows] for name, x in feeds.items()})
        for name, result in measured.items():
            if result.add(size, rows, outputs[name]):
                return math.inf
    return max(result.error_ratio for result in measured.values())

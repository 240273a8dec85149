"""One conversion after another, each measured on the golden images."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from vit_export.artifact.golden import Golden
from vit_export.artifact.manifest import Conversion, Manifest, Preprocess
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.gate.accuracy import Accuracy, RealImages, compare, top1
from vit_export.gate.distance import Measured, ratio, references
from vit_export.gate.tolerances import TOLERANCES
from vit_export.gate.trace import golden_feeds
from vit_export.gate.validate import gated_always
from vit_export.graph.half.emulate import to_rounded
from vit_export.quantization.conversions import Target
from vit_export.runner import Runner, batch_rows, fixed_batch
from vit_export.runtime.onnxruntime.runner import OrtRunner

MARGIN = 0.95  # of a limit: the search stays below what the gate, at other batches, allows
FEW_IMAGES = 128  # of the real ones, while searching


@dataclass
class Limits:
    """What real images have to show, and of how many.

    Attributes:
        images: `None` without any.
        gated: Whether they decide; with random weights the top-1 class means nothing.
        max_drop: Percentage points of accuracy that may be lost; without labels, of agreement.
    """

    images: RealImages | None = None
    gated: bool = True
    max_drop: float | None = None

    def harm(self, found: Accuracy, precision: str) -> float:
        """How far an accuracy is from the limits: up to 1 it is within."""
        if not self.gated:
            return 0.0
        floor = TOLERANCES[precision].min_agreement or 0.0
        shares = [ratio(1 - found.agreement, 1 - floor)]
        if self.max_drop is not None:
            drop = found.drop if found.drop is not None else 100 * (1 - found.agreement)
            shares.append(ratio(max(drop, 0.0), self.max_drop))
        return max(shares)


@dataclass
class TrialConverter:
    """A folder where an fp32 artifact is converted again and again.

    Attributes:
        source: The fp32 artifact.
        manifest: Of the source, with the target's precision.
        harms: What was measured already, by the layers that stayed wide.
        all_images: Whether every real image decides while searching, and not a few of them.
    """

    source: Path
    golden: Golden
    manifest: Manifest
    target: Target
    limits: Limits
    folder: Path
    harms: dict[frozenset[str], float] = field(default_factory=dict)
    all_images: bool = False
    _reference: dict[int, np.ndarray] = field(default_factory=dict)

    def convert(self, keep: frozenset[str]) -> tuple[Path, Conversion]:
        """Convert with some layers kept wide; replaces what was converted before."""
        path = self.folder / "converted.onnx"
        return path, self.target.convert(self.source, path, keep)

    def runner(self, converted: Path, *, expose: Collection[str] = ()) -> OrtRunner:
        """What computes a conversion as a device would, on this machine's CPU."""
        path = converted
        if self.target.rounded:
            path = self.folder / "rounded.onnx"
            to_rounded(converted, path)
        return OrtRunner(path, provider="cpu", expose=expose)

    def harm(self, keep: frozenset[str]) -> float:
        """Distance from the limits with these layers kept wide: up to 1 the gate will pass."""
        if keep not in self.harms:
            runner = self.runner(self.convert(keep)[0], expose=self._inner)
            harm = golden_harm(runner, self.golden, self.manifest)
            if harm <= MARGIN and self.limits.images is not None:
                images = self.limits.images
                found = self.accuracy(
                    runner, images if self.all_images else images.some(FEW_IMAGES)
                )
                harm = max(harm, self.limits.harm(found, self.target.precision))
            runner.release()
            self.harms[keep] = harm / MARGIN
        return self.harms[keep]

    def accuracy(self, runner: Runner, images: RealImages) -> Accuracy:
        """A conversion beside its source on real images; the source is run once."""
        preprocess = self.preprocess
        if len(images) not in self._reference:
            runner.release()  # one session at a time: each holds the weights
            source = OrtRunner(self.source, provider="cpu")
            self._reference[len(images)] = top1(source, images, preprocess)
            source.release()
        found = top1(runner, images, preprocess)
        return compare(found, self._reference[len(images)], images.targets)

    @cached_property
    def _inner(self) -> list[str]:
        """Tensors that the gate looks at and that are no outputs; conversions keep their names."""
        outputs = {spec.name for spec in self.manifest.outputs}
        values = OnnxFile.read(self.source).values
        return [n for n in gated_always(self.golden) if n not in outputs and n in values]

    @property
    def preprocess(self) -> Preprocess:
        """How images are prepared; only artifacts that say so are measured on any."""
        if self.manifest.preprocess is None:
            raise ValueError(f"{self.source} does not say how images are prepared")
        return self.manifest.preprocess


def golden_harm(runner: Runner, golden: Golden, manifest: Manifest) -> float:
    """Distance from the oracle on the golden images, as a share of what is allowed.

    Of what the gate looks at, at every size, but in batches of one size: each image twice, among
    other neighbours.
    """
    return max(_harm_at_size(runner, part, manifest) for part in (golden, *golden.others))


def _harm_at_size(runner: Runner, golden: Golden, manifest: Manifest) -> float:
    known = references(golden, TOLERANCES[manifest.precision])
    names = [spec.name for spec in manifest.outputs if spec.name in known]
    inner = [n for n in gated_always(golden) if n not in names and runner.has_tensor(n)]
    computing = runner
    if not set(inner) <= {spec.name for spec in runner.outputs}:
        runner.release()  # one session at a time: each holds the weights
        computing = runner.expose(inner)
    feeds = golden_feeds(runner, golden, manifest.preprocess)
    size = fixed_batch(manifest.inputs[0]) or golden.samples
    measured = {name: Measured(known[name]) for name in (*names, *inner)}
    batches = batch_rows(golden.samples, size)
    for rows in (*batches, *(batch[::-1] for batch in batches)):
        outputs = computing.run({name: x[rows] for name, x in feeds.items()})
        for name, result in measured.items():
            if result.add(size, rows, outputs[name]):
                return float("inf")
    if computing is not runner:
        computing.release()
    return max(result.error_ratio for result in measured.values())

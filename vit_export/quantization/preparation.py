"""What a conversion needs before it can start: ranges of activations, smoothed weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vit_export.errors import GateError
from vit_export.golden import Golden
from vit_export.graph.float16 import residual_tensors
from vit_export.graph.halves import HALVES
from vit_export.manifest import Manifest
from vit_export.progress import Progress
from vit_export.quantization.settings import QuantizeSettings
from vit_export.quantization.target import HalfTarget, Target
from vit_export.runtime.ort import OrtRunner
from vit_export.trace import golden_feeds

HEADROOM = 2  # a residual stream may reach the largest value of its type, divided by this


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Ready to be converted.

    Attributes:
        source: The fp32 artifact, or the same with smoothed weights.
        target: The precision, and how to get there.
        beside: Files in the staging folder that belong beside the result.
    """

    source: Path
    target: Target
    beside: tuple[Path, ...] = ()


def prepare(
    source: Path,
    manifest: Manifest,
    golden: Golden,
    settings: QuantizeSettings,
    stage: Path,
    progress: Progress,
) -> Prepared:
    """Calibrate and smooth, as far as the settings ask for it.

    Raises:
        GateError: The recipe cannot hold the residual stream.
        DataError: The calibration images cannot be used.
    """
    if settings.recipe == "all":
        _refuse_large_residual(source, manifest, golden, settings, progress)
    return Prepared(
        source=source,
        target=HalfTarget(
            precision=settings.precision, recipe=settings.recipe, half_io=settings.half_io
        ),
    )


def _refuse_large_residual(
    source: Path,
    manifest: Manifest,
    golden: Golden,
    settings: QuantizeSettings,
    progress: Progress,
) -> None:
    """Raise GateError when the residual stream comes near the largest value of its type."""
    progress("range of the residual stream")
    tensors = residual_tensors(source)
    runner = OrtRunner(source, provider="cpu").expose(tensors)
    feeds = golden_feeds(runner, golden, manifest.preprocess)
    size = manifest.inputs[0].shape[0]
    rows = np.arange(size if isinstance(size, int) else golden.samples) % golden.samples
    outputs = runner.run({name: values[rows] for name, values in feeds.items()})
    reached = {name: float(np.abs(outputs[name]).max()) for name in tensors}
    largest = HALVES[settings.precision].largest
    over = [name for name in tensors if reached[name] > largest / HEADROOM]
    if over:
        raise GateError(
            f"{source.name}: --fp16-recipe all puts the residual stream into "
            f"{settings.precision}, but it reaches {max(reached.values()):.3g} (first at "
            f"{over[0]}, {reached[over[0]]:.3g}) of {largest:g}, the largest value; the default "
            "recipe keeps it in fp32: leave --fp16-recipe out"
        )

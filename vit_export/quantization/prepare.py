"""What a conversion needs before it can start: ranges of activations, smoothed weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_export.artifact.golden import Golden
from vit_export.artifact.manifest import Manifest
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.publish import pack_artifact
from vit_export.errors import GateError
from vit_export.gate.accuracy import RealImages, read_images
from vit_export.gate.trace import golden_feeds
from vit_export.graph.half.convert import residual_tensors
from vit_export.graph.half.types import HALVES
from vit_export.graph.int8.select import planned_tensors
from vit_export.graph.int8.smooth import smooth
from vit_export.progress import Progress
from vit_export.quantization.activation_ranges import Ranges
from vit_export.quantization.calibration import BATCH, MOST, calibrate, calibration_batches
from vit_export.quantization.conversions import DynamicTarget, HalfTarget, StaticTarget, Target
from vit_export.quantization.settings import HALVES as HALF_PRECISIONS
from vit_export.quantization.settings import METHODS, PERCENTILE, QuantizeSettings
from vit_export.runner import batch_rows, fixed_batch
from vit_export.runtime.onnxruntime.runner import OrtRunner

HEADROOM = 2  # a residual stream may reach the largest value of its type, divided by this
RANGES_SUFFIX = ".ranges.npz"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Ready to be converted.

    Attributes:
        source: The fp32 artifact, or the same with smoothed weights.
        target: The precision, and how to get there.
        calibration: Where ranges of activations came from; empty where none were needed.
        notes: What was done to the weights before.
        beside: Files in the staging folder that belong beside the result.
    """

    source: Path
    target: Target
    calibration: str = ""
    notes: tuple[str, ...] = ()
    beside: tuple[Path, ...] = ()


def prepare(
    source: Path,
    name: str,
    golden: Golden,
    settings: QuantizeSettings,
    stage: Path,
    progress: Progress,
) -> Prepared:
    """Calibrate and smooth, as far as the settings ask for it.

    Args:
        source: An fp32 artifact of ours.
        name: Stem of the result, after which its ranges are called.
        golden: Its golden file.
        settings: What was asked for.
        stage: Folder for files.
        progress: Told what is being done.

    Raises:
        GateError: The recipe cannot hold the residual stream.
        DataError: The calibration images cannot be used.
    """
    if settings.precision in HALF_PRECISIONS:
        target = HalfTarget(settings.precision, settings.recipe, settings.half_io)
        if settings.recipe != "all":
            return Prepared(source=source, target=target)
        watched = _Watched(source, golden, settings, progress)
        _check_large_residual(watched, settings.precision)
        return Prepared(source=source, target=target, calibration=watched.described)
    notes: tuple[str, ...] = ()
    calibration = ""
    if settings.smooth is not None:
        source, notes, calibration = _smoothed(source, golden, settings, stage, progress)
    if settings.precision == "int8":
        return Prepared(source=source, target=DynamicTarget(), calibration=calibration, notes=notes)
    watched = _Watched(source, golden, settings, progress)
    ranges = watched.ranges(planned_tensors(source))
    beside = stage / f"{name}{RANGES_SUFFIX}"
    ranges.write(beside)
    return Prepared(
        source=source,
        target=StaticTarget(
            ranges.thresholds(
                settings.method or METHODS[0], percentile=settings.percentile or PERCENTILE
            )
        ),
        calibration=f"{watched.described}, {_method(settings)}",
        notes=notes,
        beside=(beside,),
    )


def _method(settings: QuantizeSettings) -> str:
    method = settings.method or METHODS[0]
    return f"percentile {settings.percentile or PERCENTILE:g}" if method == METHODS[0] else method


class _Watched:
    """An fp32 artifact on its calibration images; on the golden ones where none were given."""

    def __init__(
        self, source: Path, golden: Golden, settings: QuantizeSettings, progress: Progress
    ) -> None:
        self.runner = OrtRunner(source, provider="cpu")
        self.golden, self.progress = golden, progress
        self.manifest: Manifest | None = self.runner.manifest
        self.images: RealImages | None = None
        preprocess = self.manifest.preprocess if self.manifest else None
        if settings.calibration is not None and preprocess is not None:
            self.images = read_images(Path(settings.calibration), preprocess, ())

    @property
    def described(self) -> str:
        """Where the ranges come from."""
        if self.images is None:
            return f"the {self.golden.samples} golden images"
        return f"{min(MOST, len(self.images))} of {len(self.images)} images of {self.images.source}"

    def ranges(self, tensors: Sequence[str]) -> Ranges:
        """Statistics of tensors."""
        total = self.golden.samples if self.images is None else min(MOST, len(self.images))
        found = calibrate(
            self.runner, self._batches(), tensors, total=total, progress=self.progress
        )
        self.runner.release()
        return found

    def _batches(self) -> Iterator[dict[str, Any]]:
        fixed = fixed_batch(self.runner.inputs[0])
        size = fixed or BATCH
        preprocess = self.manifest.preprocess if self.manifest else None
        if self.images is not None and preprocess is not None:
            batches = calibration_batches(
                self.images.images, preprocess, batch=size, fixed=fixed is not None
            )
            for batch in batches:
                yield {self.runner.inputs[0].name: next(iter(batch.values()))}
            return
        feeds = golden_feeds(self.runner, self.golden, preprocess)
        for rows in batch_rows(self.golden.samples, size):
            yield {name: values[rows] for name, values in feeds.items()}


def _smoothed(
    source: Path, golden: Golden, settings: QuantizeSettings, stage: Path, progress: Progress
) -> tuple[Path, tuple[str, ...], str]:
    """The same artifact with activations evened out into the weights, to the bit in float32."""
    watched = _Watched(source, golden, settings, progress)
    ranges = watched.ranges(planned_tensors(source))
    count = smooth(
        source, stage / "smooth.onnx", ranges.channel_absmax, alpha=settings.smooth or 0.0
    )
    file, manifest = OnnxFile.read(stage / "smooth.onnx"), OnnxFile.read(source).manifest
    if manifest is None:
        raise ValueError(f"{source} has no manifest")
    packed = pack_artifact(
        file, stage / "smoothed.onnx", manifest, outputs=[spec.name for spec in file.outputs]
    )
    note = f"SmoothQuant with alpha {settings.smooth:g} after {count} LayerNormalizations"
    return packed.path, (note,), watched.described


def _check_large_residual(watched: _Watched, precision: str) -> None:
    """Raise GateError when the residual stream comes near the largest value of its type."""
    tensors = residual_tensors(watched.runner.path)
    found = watched.ranges(tensors).tensors
    largest = HALVES[precision].largest
    over = [name for name in tensors if found[name].absmax > largest / HEADROOM]
    if over:
        most = max(found[name].absmax for name in tensors)
        raise GateError(
            f"{watched.runner.path.name}: --fp16-recipe all puts the residual stream into "
            f"{precision}, but it reaches {most:.3g} (first at {over[0]}, "
            f"{found[over[0]].absmax:.3g}) of {largest:g}, the largest value; the default "
            "recipe keeps it in fp32: leave --fp16-recipe out"
        )

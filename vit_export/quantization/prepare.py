"""Prepare a conversion: calibrate activation ranges, smooth weights, check the residual stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vit_export.artifact.golden import Golden
from vit_export.artifact.manifest import Conversion, Manifest
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.publish import pack_artifact
from vit_export.errors import GateError
from vit_export.graph.half.convert import HALVES, layers_to_narrow, residual_tensors, to_half
from vit_export.graph.int8.dynamic import to_int8_dynamic
from vit_export.graph.int8.select import planned_layers, planned_tensors
from vit_export.graph.int8.smooth import smooth
from vit_export.graph.int8.static import to_int8_static
from vit_export.progress import Progress
from vit_export.quantization.calibration import Calibrator
from vit_export.quantization.settings import METHODS, PERCENTILE, QuantizeSettings

HEADROOM = 2  # the residual stream may reach the largest value of its type, divided by this
RANGES_SUFFIX = ".ranges.npz"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A narrower precision, and how to convert to it."""

    precision: str
    emulated: bool  # a CPU skips roundings of it, so it is measured with every operation rounded
    convert: Callable[..., Conversion]  # (source, file to write, keep=layers that stay fp32)
    layers: Callable[[Path], list[str]]  # converted layers of a source, in the order of the graph


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """An artifact that is ready to be converted."""

    source: Path  # the fp32 artifact, or the same with smoothed weights
    target: Target
    calibration: str  # images that the activation ranges come from; empty where none were needed
    notes: tuple[str, ...]  # what was done to the weights; warnings about the calibration images
    companions: tuple[Path, ...]  # files that are published beside the result


def prepare(
    source: Path,
    stem: str,
    golden: Golden,
    manifest: Manifest,
    settings: QuantizeSettings,
    folder: Path,
    progress: Progress,
) -> Prepared:
    """Calibrate and smooth an fp32 artifact, as far as the settings ask for it.

    Files are written to `folder`; that of the activation ranges is named after `stem`.

    Raises:
        GateError: The recipe cannot hold the residual stream.
        DataError: The calibration images cannot be used.
    """
    calibrator = Calibrator(golden, manifest.preprocess, settings.calibration, progress=progress)
    calibration, thresholds = "", dict[str, float]()
    notes: tuple[str, ...] = ()
    companions: tuple[Path, ...] = ()
    if settings.is_half and settings.recipe == "all":
        _check_residual(source, calibrator, settings.precision)
        calibration = calibrator.description
    if settings.smooth is not None:
        source, count = _smoothed(source, manifest, calibrator, settings.smooth, folder)
        calibration = calibrator.description
        notes = (f"SmoothQuant with alpha {settings.smooth:g} after {count} LayerNormalizations",)
    if settings.precision == "int8-static":
        method, percentile = settings.method or METHODS[0], settings.percentile or PERCENTILE
        ranges = calibrator.ranges(source, planned_tensors(source))
        thresholds = ranges.thresholds(method, percentile=percentile)
        described = f"percentile {percentile:g}" if method == "percentile" else method
        calibration = f"{calibrator.description}, {described}"
        companions = (folder / f"{stem}{RANGES_SUFFIX}",)
        ranges.write(companions[0])
    return Prepared(
        source=source,
        target=_target(settings, thresholds),
        calibration=calibration,
        notes=(*notes, *calibrator.warnings),
        companions=companions,
    )


def _target(settings: QuantizeSettings, thresholds: Mapping[str, float]) -> Target:
    """Return the target of the settings; static INT8 needs the thresholds of `to_int8_static`."""
    precision, recipe = settings.precision, settings.recipe
    if settings.is_half:
        return Target(
            precision=precision,
            emulated=True,
            convert=partial(to_half, precision=precision, recipe=recipe, half_io=settings.half_io),
            layers=partial(layers_to_narrow, precision=precision, recipe=recipe),
        )
    static = precision == "int8-static"
    return Target(
        precision=precision,
        emulated=False,
        convert=partial(to_int8_static, thresholds=thresholds) if static else to_int8_dynamic,
        layers=planned_layers,
    )


def _smoothed(
    source: Path, manifest: Manifest, calibrator: Calibrator, alpha: float, folder: Path
) -> tuple[Path, int]:
    """Write the same artifact with smoothed weights; its outputs stay the same to the bit.

    Returns:
        The file, called as the source so that messages name the user's file, and the number of
        LayerNormalizations that were changed.
    """
    ranges = calibrator.ranges(source, planned_tensors(source))
    graph, packed = folder / "smooth" / source.name, folder / "smoothed" / source.name
    for path in (graph, packed):
        path.parent.mkdir()
    absmax = {name: r.channels for name, r in ranges.tensors.items()}
    count = smooth(source, graph, absmax, alpha=alpha)
    return pack_artifact(OnnxFile.read(graph), packed, manifest).path, count


def _check_residual(source: Path, calibrator: Calibrator, precision: str) -> None:
    """Raise GateError when the residual stream comes near the largest value of its type."""
    ranges = calibrator.ranges(source, residual_tensors(source)).tensors
    largest = HALVES[precision].largest
    large = [(name, r.absmax) for name, r in ranges.items() if r.absmax > largest / HEADROOM]
    if large:
        (first, absmax), most = large[0], max(absmax for _, absmax in large)
        raise GateError(
            f"{source.name}: --fp16-recipe all puts the residual stream into {precision}, but it "
            f"reaches {most:.3g} (first at {first}, {absmax:.3g}) of {largest:g}, the largest "
            f"{precision} value",
            hint="leave --fp16-recipe out: the default recipe keeps the residual stream in fp32",
        )

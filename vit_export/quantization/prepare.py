"""Prepare a conversion: calibrate activation ranges, smooth weights, check the residual stream."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vit_export.artifact.golden import Golden
from vit_export.artifact.manifest import Conversion, Manifest
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.publish import pack_artifact
from vit_export.artifact.vocabulary import HALF_PRECISIONS
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


@dataclass(kw_only=True)
class Prepared:
    """An artifact that is ready to be converted."""

    source: Path  # the fp32 artifact, or the same with smoothed weights
    convert: Callable[..., Conversion]  # (source, file to write, keep=layers that stay fp32)
    layers: list[str]  # layers that are converted, in the order of the graph
    calibration: str = ""  # images that the activation ranges come from; empty without ranges
    notes: tuple[str, ...] = ()  # what was done to the weights; warnings about the images
    companions: tuple[Path, ...] = ()  # files that are published beside the result


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
    """
    calibrator = Calibrator(golden, manifest.preprocess, settings.calibration, progress=progress)
    precision, recipe = settings.precision, settings.recipe
    if precision in HALF_PRECISIONS:
        prepared = Prepared(
            source=source,
            convert=partial(to_half, precision=precision, recipe=recipe, half_io=settings.half_io),
            layers=layers_to_narrow(source, precision=precision, recipe=recipe),
        )
        if recipe == "all":
            _check_residual(source, calibrator, precision)
            prepared.calibration = calibrator.description
    else:
        prepared = Prepared(source=source, convert=to_int8_dynamic, layers=planned_layers(source))
    if settings.smooth is not None:
        prepared.source, count = _smoothed(source, manifest, calibrator, settings.smooth, folder)
        prepared.calibration = calibrator.description
        alpha = f"{settings.smooth:g}"
        prepared.notes = (f"SmoothQuant with alpha {alpha} after {count} LayerNormalizations",)
    if precision == "int8-static":
        method, percentile = settings.method or METHODS[0], settings.percentile or PERCENTILE
        ranges = calibrator.ranges(prepared.source, planned_tensors(prepared.source))
        thresholds = {
            name: r.threshold(method, percentile=percentile) for name, r in ranges.tensors.items()
        }
        prepared.convert = partial(to_int8_static, thresholds=thresholds)
        described = f"percentile {percentile:g}" if method == "percentile" else method
        prepared.calibration = f"{calibrator.description}, {described}"
        prepared.companions = (folder / f"{stem}.ranges.npz",)
        ranges.write(prepared.companions[0])
    prepared.notes += calibrator.warnings
    return prepared


def scratch_file(folder: Path, stage: str, source: Path) -> Path:
    """Return a path named after the source, so that messages name the user's file."""
    path = folder / stage / source.name
    path.parent.mkdir(exist_ok=True)
    return path


def _smoothed(
    source: Path, manifest: Manifest, calibrator: Calibrator, alpha: float, folder: Path
) -> tuple[Path, int]:
    """Write the same artifact with smoothed weights; its outputs stay the same to the bit.

    Also returns the number of LayerNormalizations that were changed.
    """
    ranges = calibrator.ranges(source, planned_tensors(source))
    absmax = {name: r.channels for name, r in ranges.tensors.items()}
    graph = scratch_file(folder, "smooth", source)
    count = smooth(source, graph, absmax, alpha=alpha)
    packed = scratch_file(folder, "smoothed", source)
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

"""An fp32 artifact to a narrower one: converted, measured, and repaired where it fails."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from vit_export.artifact.golden import Golden, find_golden, golden_path
from vit_export.artifact.manifest import Conversion, Kept, Manifest
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.publish import (
    check_golden_not_shared,
    check_output_name,
    pack_artifact,
    publish_artifact,
    staging,
)
from vit_export.errors import ArtifactError, GateError, UsageError
from vit_export.gate.accuracy import Accuracy, RealImages, gives_classes, read_images
from vit_export.graph.layers import weight_bytes
from vit_export.progress import Progress, silent
from vit_export.quantization.conversions import units_of
from vit_export.quantization.gate import Gated, gate
from vit_export.quantization.prepare import prepare
from vit_export.quantization.search import Repair, Sensitivity, repair, sensitivities
from vit_export.quantization.settings import QuantizeSettings
from vit_export.quantization.trials import Limits, TrialConverter

if TYPE_CHECKING:
    from vit_export.gate.validate import Comparison

PER_BLOCK = "error per block"
__all__ = ["QuantizeResult", "QuantizeSettings", "quantize"]


@dataclass(frozen=True, kw_only=True)
class QuantizeResult:
    """What a conversion made.

    Attributes:
        path: The narrower `.onnx` file.
        golden: The golden file beside it.
        manifest: What the file says about itself; `conversion` tells what stayed wide, and why.
        comparison: The gate on the file itself.
        files: All files, external data included.
        source_bytes: Size of the fp32 artifact.
        size_bytes: Size of the narrower one, external data included.
        blocks: What each block does to the result when it alone is narrow; empty where it was
            not measured.
        layers: The same for the layers of the blocks that failed.
        seconds: How long it took.
    """

    path: Path
    golden: Path
    manifest: Manifest
    comparison: Comparison
    files: tuple[Path, ...]
    source_bytes: int
    size_bytes: int
    blocks: tuple[Sensitivity, ...] = ()
    layers: tuple[Sensitivity, ...] = ()
    accuracy: Accuracy | None = None
    seconds: float = 0.0


def quantize(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    settings: QuantizeSettings,
    golden: str | os.PathLike[str] | None = None,
    external_data: bool = False,
    progress: Progress = silent,
) -> QuantizeResult:
    """Convert an fp32 artifact, measure it, and keep layers wide where the gate fails.

    Args:
        source: An artifact of vit-export in fp32.
        output: File to write; by default `NAME.<precision>.onnx` beside the source.
        settings: The precision, and what the result has to keep to.
        golden: Golden file; by default the one beside the source.
        external_data: Whether to store the weights beside the file.
        progress: Told what is being done.

    Raises:
        UsageError: The request cannot be met.
        ArtifactError: The source is missing, damaged, not ours, or not fp32.
        DataError: The images cannot be used.
        GateError: It cannot be made good enough within the budget; nothing was written.
        OutputError: The output cannot be written.
    """
    started = time.monotonic()
    source = Path(source)
    path = Path(output) if output is not None else default_output(source, settings.precision)
    check_output_name(path)
    file, manifest = _checked(source, path)
    given = find_golden(source, golden)
    truth = Golden.read(given)
    check_golden_not_shared(path, given)
    limits = Limits(
        images=_real_images(settings.images, manifest, source),
        gated=not manifest.weights.random,
        max_drop=settings.max_drop,
    )
    if manifest.weights.random and settings.max_drop is not None:
        raise UsageError(
            f"--max-drop: the weights of {source.name} are random, so its classes mean nothing; "
            "leave it out"
        )
    with staging(path) as stage:
        scratch = stage / "scratch"  # whose names cannot meet the result's
        scratch.mkdir()
        prepared = prepare(source, path.stem, truth, settings, scratch, progress)
        narrow = manifest.replace(precision=settings.precision)
        bench = TrialConverter(prepared.source, truth, narrow, prepared.target, limits, scratch)
        made = _make(bench, stage / path.name, settings.budget, external_data, progress)
        blocks = made.found.blocks if made.found is not None else ()
        if settings.explain and not blocks:
            blocks = sensitivities(made.units, bench.harm, progress=progress, what=PER_BLOCK)
        golden_file = stage / golden_path(path).name
        truth.write(golden_file)
        final = narrow.replace(
            inputs=made.packed.inputs,
            outputs=made.packed.outputs,
            conversion=msgspec.structs.replace(
                made.conversion,
                calibration=prepared.calibration,
                notes=(*prepared.notes, *made.conversion.notes),
            ),
            graph_sha256=made.packed.graph_sha256(),
            certificate=(*manifest.certificate, *made.gated.stages),
        )
        others = [golden_file, *prepared.beside]
        files = publish_artifact(made.packed, others, final, path)
    return QuantizeResult(
        path=path,
        golden=golden_path(path),
        manifest=final,
        comparison=made.gated.comparison,
        files=files,
        source_bytes=_size(file),
        size_bytes=_size(OnnxFile.read(path)),
        blocks=blocks,
        layers=made.found.layers if made.found is not None else (),
        accuracy=made.gated.accuracy,
        seconds=time.monotonic() - started,
    )


def default_output(source: Path, precision: str) -> Path:
    """`b16.onnx` becomes `b16.fp16.onnx`, beside it."""
    return source.with_name(f"{source.stem}.{precision}.onnx")


def _checked(source: Path, path: Path) -> tuple[OnnxFile, Manifest]:
    """The source and what it says about itself.

    Raises:
        ArtifactError: It is not ours, not fp32, or not what it was when it was measured.
        UsageError: The output would replace it.
    """
    file = OnnxFile.read(source)
    manifest = file.manifest
    if path.exists() and path.samefile(source):
        raise UsageError(f"the output {path} is the fp32 artifact itself; give another name")
    if manifest is None:
        raise ArtifactError(
            f"{source}: has no vit-export manifest, so nothing says what it should compute; "
            "export the model with vit-export first (--module takes any nn.Module)"
        )
    if manifest.precision != "fp32":
        raise ArtifactError(
            f"{source}: is {manifest.precision} already; convert the fp32 artifact instead"
        )
    if manifest.passed is not True:
        raise ArtifactError(f"{source}: its own gate was not passed; export it again")
    file.check_certified()
    return file, manifest


def _real_images(
    path: str | os.PathLike[str] | None, manifest: Manifest, source: Path
) -> RealImages | None:
    if path is None:
        return None
    logits = [spec for spec in manifest.outputs if spec.name == "logits"]
    if manifest.preprocess is None or not logits or not gives_classes(logits[0]):
        raise UsageError(
            f"--images compares classes, but {source.name} gives no logits (batch, classes) of "
            "images"
        )
    return read_images(Path(path), manifest.preprocess, manifest.labels)


@dataclass(frozen=True, kw_only=True)
class _Made:
    """A conversion that was measured."""

    packed: OnnxFile
    conversion: Conversion
    gated: Gated
    units: dict[str, list[str]]
    found: Repair | None = None


def _make(
    bench: TrialConverter, path: Path, budget: float, external_data: bool, progress: Progress
) -> _Made:
    """Convert and measure; where that fails, search for the layers that have to stay wide.

    Args:
        bench: Where conversions are made and measured.
        path: The packed artifact, in the staging folder.
        budget: Largest share of the weights that may stay wide.
        external_data: Whether the weights lie beside the file.
        progress: Told what is being done.
    """
    precision = bench.target.precision
    progress(f"fp32 -> {precision}")
    units = units_of(bench.target.layers(bench.source), bench.manifest.blocks)

    def attempt(keep: frozenset[str], found: Repair | None = None) -> _Made:
        converted, conversion = bench.convert(keep)
        conversion = msgspec.structs.replace(
            conversion,
            source_sha256=bench.manifest.graph_sha256,
            kept=(*conversion.kept, *(_kept(found, precision) if found else ())),
        )
        packed = pack_artifact(
            OnnxFile.read(converted),
            path,
            bench.manifest,
            outputs=[spec.name for spec in bench.manifest.outputs],
            external_data=external_data,
        )
        _check_over_budget(bench, conversion, budget)
        gated = gate(bench, packed, conversion, progress)
        return _Made(packed=packed, conversion=conversion, gated=gated, units=units, found=found)

    first = attempt(frozenset())
    if not first.gated.failures:
        return first
    bench.all_images = first.gated.accuracy is not None
    found = repair(units, bench.harm, progress=progress)
    if not found.keep:
        raise GateError(
            f"{bench.source.name} cannot become {precision}: {'; '.join(first.gated.failures)}; "
            "no layer that stays fp32 mends it, so what fails lies elsewhere; nothing was written"
        )
    second = attempt(found.keep, found)
    if second.gated.failures:
        raise GateError(
            f"{bench.source.name} cannot become {precision}: with {len(found.keep)} layers kept "
            f"in fp32 it still fails: {'; '.join(second.gated.failures)}; nothing was written"
        )
    return second


def _kept(found: Repair, precision: str) -> list[Kept]:
    harm = {s.unit: s.harm for s in (*found.blocks, *found.layers)}

    def reason(layer: str) -> str:
        if harm[layer] == float("inf"):
            return f"alone in {precision} it makes the result NaN or infinite"
        return f"alone in {precision} it is off by {harm[layer]:.3g} times what is allowed"

    return [Kept(layer, "fp32", reason(layer)) for layer in sorted(found.keep or ())]


def _check_over_budget(bench: TrialConverter, conversion: Conversion, budget: float) -> None:
    """Raise GateError where too little would be narrow to call the artifact so."""
    precision, name = bench.target.precision, bench.source.name
    if not conversion.narrowed:
        raise GateError(
            f"{name} cannot become {precision}: none of its {conversion.planned} products with "
            "weights would be narrow; nothing was written"
        )
    weights, keep = weight_bytes(bench.source), {kept.layer for kept in conversion.kept}
    share = sum(n for layer, n in weights.items() if layer in keep) / sum(weights.values())
    if share > budget:
        reasons = "; ".join(f"{k.layer}: {k.reason}" for k in conversion.kept[:3])
        raise GateError(
            f"{name} cannot become {precision}: to pass, {len(keep)} layers with "
            f"{100 * share:.0f} % of the weights would have to stay fp32 ({_some(sorted(keep))}), "
            f"and --budget allows {100 * budget:.0f} % ({reasons}); nothing was written"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _size(file: OnnxFile) -> int:
    return file.size_bytes + sum(beside.stat().st_size for beside in file.external_files)

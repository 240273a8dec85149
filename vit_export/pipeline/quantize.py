"""The door `quantize`: convert an fp32 artifact, measure it, keep layers in fp32 where it fails."""

import math
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vit_export.artifact.golden import Golden, find_golden, golden_path
from vit_export.artifact.manifest import Conversion, Kept, Manifest, Stage
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.publish import (
    check_golden_not_shared,
    check_output_name,
    pack_artifact,
    publish_artifact,
    staging,
)
from vit_export.artifact.vocabulary import LOGITS
from vit_export.errors import ArtifactError, GateError, UsageError
from vit_export.gate.accuracy import has_classes, read_images
from vit_export.gate.tolerances import TOLERANCES
from vit_export.gate.validate import Comparison
from vit_export.graph.embed import take_off_preparation
from vit_export.graph.layers import weight_bytes
from vit_export.pipeline.embed import pack_embedded
from vit_export.pipeline.result import ArtifactResult
from vit_export.progress import Progress, silent
from vit_export.quantization.gate import compare_file, run_gate
from vit_export.quantization.prepare import prepare
from vit_export.quantization.search import Repair, Sensitivity, repair, sensitivities, units_of
from vit_export.quantization.settings import QuantizeSettings
from vit_export.quantization.trials import AccuracyLimits, TrialConverter


@dataclass(frozen=True, kw_only=True)
class QuantizeResult(ArtifactResult):
    """Result of a conversion; `manifest.conversion` lists the layers that stayed fp32, and why.

    Attributes:
        source_bytes: Size of the fp32 artifact, external data included.
        blocks: Error when each block alone is converted; empty where it was not measured.
        layers: The same for the layers of the blocks that failed.
    """

    source_bytes: int
    blocks: tuple[Sensitivity, ...]
    layers: tuple[Sensitivity, ...]


def quantize(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    settings: QuantizeSettings,
    golden: str | os.PathLike[str] | None = None,
    external_data: bool = False,
    progress: Progress = silent,
) -> QuantizeResult:
    """Convert an fp32 artifact to FP16, BF16 or INT8, and run the gate on the result.

    Where the gate fails, a search finds the layers that have to stay fp32.

    Args:
        source: An fp32 artifact of vit-export.
        output: File to write; by default `NAME.<precision>.onnx` beside the source.
        settings: The precision, and the limits that the result must keep to.
        golden: Golden file; by default the one beside the source.
        external_data: Whether to store the weights beside the file.
        progress: Called with each step.

    Raises:
        UsageError: The settings do not fit the source.
        ArtifactError: The source is missing, damaged, not an fp32 artifact of vit-export, or was
            changed after it was measured.
        DataError: The images cannot be used.
        GateError: The gate fails, and no repair within the budget exists; nothing was written.
        OutputError: The output cannot be written.
    """
    started = time.monotonic()
    source = Path(source)
    path = Path(output or source.with_name(f"{source.stem}.{settings.precision}.onnx"))
    check_output_name(path)
    file, manifest = _read_source(source, path)
    golden_file = find_golden(source, golden)
    reference = Golden.read(golden_file)
    check_golden_not_shared(path, golden_file)
    limits = _accuracy_limits(settings, manifest, source.name)
    with staging(path) as stage:
        scratch = stage / "scratch"  # a subfolder, so that its files cannot overwrite the result
        scratch.mkdir()
        network, plain = source, manifest
        if manifest.embedded:
            network = scratch / "network" / source.name
            network.parent.mkdir()
            plain = take_off_preparation(source, network, manifest)
        prepared = prepare(network, path.stem, reference, plain, settings, scratch, progress)
        narrow = plain.replace(precision=settings.precision)
        trials = TrialConverter(prepared, reference, narrow, limits, scratch)
        units = units_of(prepared.layers, manifest.blocks)
        packed, conversion, comparisons, repaired = _convert(
            trials, units, stage / path.name, settings.budget, external_data, progress
        )
        stages = [comparison.stage for comparison in comparisons]
        if manifest.embedded:
            packed, narrow, comparison, preparation = _embedded(
                trials, packed, manifest.resize, stages[-1], external_data, scratch, progress
            )
            stages += [preparation, comparison.stage]
            comparisons.append(comparison)
        blocks = repaired.blocks
        if settings.explain and not blocks:
            blocks = sensitivities(units, trials.error_ratio, progress=progress)
        golden_copy = stage / golden_path(path).name
        shutil.copyfile(golden_file, golden_copy)
        final = narrow.replace(
            inputs=packed.inputs,
            outputs=packed.outputs,
            conversion=conversion.replace(
                source_sha256=manifest.graph_sha256,
                calibration=prepared.calibration,
                notes=(*prepared.notes, *conversion.notes),
            ),
            graph_sha256=packed.graph_sha256(),
            certificate=(*manifest.certificate, *stages),
        )
        files = publish_artifact(packed, [golden_copy, *prepared.companions], final, path)
    return QuantizeResult(
        path=path,
        golden=golden_path(path),
        manifest=final,
        comparison=comparisons[-1],
        files=files,
        source_bytes=file.total_bytes,
        seconds=time.monotonic() - started,
        blocks=blocks,
        layers=repaired.layers,
    )


def _embedded(
    trials: TrialConverter,
    packed: OnnxFile,
    resize: str,
    gated: Stage,
    external_data: bool,
    scratch: Path,
    progress: Progress,
) -> tuple[OnnxFile, Manifest, Comparison, Stage]:
    """Embed the image preparation into a converted network, and run the gate on the result.

    `gated` is the last line of the network by itself, which was compared on real images too.
    """
    packed, manifest, preparation = pack_embedded(
        packed,
        packed.path,
        trials.manifest,
        resize=resize,
        scratch=scratch,
        stage=gated.name,
        external_data=external_data,
        progress=progress,
    )
    comparison = compare_file(packed, trials.golden, manifest, f"{gated.name}, embedded")
    if comparison.stage.passed is False:
        raise _refusal(trials, f"with its image preparation embedded: {comparison.stage.reason}")
    line = comparison.stage.replace(
        accuracy=gated.accuracy,
        real_images=gated.real_images,
        real_agreement=gated.real_agreement,
        accuracy_drop=gated.accuracy_drop,
    )
    return packed, manifest, replace(comparison, stage=line), preparation


def _read_source(source: Path, path: Path) -> tuple[OnnxFile, Manifest]:
    """Read an fp32 artifact that passed its gate and was not changed since."""
    file = OnnxFile.read(source)
    manifest = file.manifest
    if path.exists() and path.samefile(source):
        raise UsageError(f"the output {path} is the fp32 artifact itself", hint="give another name")
    if manifest is None:
        raise ArtifactError(
            f"{source}: has no vit-export manifest, so what it should compute is unknown",
            hint="export the model with vit-export first (--module takes any nn.Module)",
        )
    if manifest.precision != "fp32":
        raise ArtifactError(
            f"{source}: is {manifest.precision} already", hint="convert the fp32 artifact instead"
        )
    if manifest.passed is not True:
        raise ArtifactError(f"{source}: did not pass its own gate", hint="export it again")
    file.check_certified()
    return file, manifest


def _accuracy_limits(settings: QuantizeSettings, manifest: Manifest, name: str) -> AccuracyLimits:
    if manifest.weights.random and settings.max_drop is not None:
        raise UsageError(
            f"--max-drop: the weights of {name} are random, so its classes mean nothing",
            hint="leave it out",
        )
    images = None
    if settings.images is not None:
        if manifest.preprocess is None or not has_classes(manifest):
            raise UsageError(
                f"--images compares classes, and {name} has no output {LOGITS} "
                "(batch, classes) of images"
            )
        images = read_images(settings.images, manifest.preprocess, manifest.labels)
    if settings.max_drop is not None and images is not None and images.targets is None:
        raise UsageError(
            f"--max-drop: the class of each image in {settings.images} is unknown, so no accuracy "
            "can be measured",
            hint="put the images into folders named after the classes of the model, or give a "
            "digits CSV with a label column; or leave --max-drop out",
        )
    agreement = TOLERANCES[settings.precision].min_agreement or 0.0
    max_changed = math.inf if manifest.weights.random else 1 - agreement
    return AccuracyLimits(images=images, max_changed=max_changed, max_drop=settings.max_drop)


def _convert(
    trials: TrialConverter,
    units: Mapping[str, list[str]],
    path: Path,
    budget: float,
    external_data: bool,
    progress: Progress,
) -> tuple[OnnxFile, Conversion, list[Comparison], Repair]:
    """Convert and run the gate; where it fails, search for the layers that have to stay fp32."""
    precision, manifest = trials.manifest.precision, trials.manifest
    progress(f"fp32 -> {precision}")
    repaired = Repair(keep={}, blocks=())
    while True:
        keep = repaired.keep
        file, conversion = trials.convert(keep)
        reasons = (Kept(layer, "fp32", repaired.reason(layer, precision)) for layer in keep)
        conversion = conversion.replace(kept=(*conversion.kept, *reasons))
        _check_budget(trials, conversion, budget)
        packed = pack_artifact(OnnxFile.read(file), path, manifest, external_data=external_data)
        comparisons = run_gate(trials, packed, conversion, progress)
        stage = comparisons[-1].stage
        if stage.passed is not False:
            return packed, conversion, comparisons, repaired
        failure, count = stage.reason, len(keep)
        if keep:
            raise _refusal(trials, f"with {count} layers kept in fp32 it still fails: {failure}")
        trials.all_images = True
        repaired = repair(units, trials.error_ratio, progress=progress)
        if not repaired.keep:
            raise _refusal(trials, f"{failure}; keeping layers in fp32 does not repair it")


def _check_budget(trials: TrialConverter, conversion: Conversion, budget: float) -> None:
    """Raise GateError when too few weights would be converted."""
    if not conversion.narrowed:
        products = f"{conversion.planned} products with weights"
        raise _refusal(trials, f"none of its {products} would be {trials.manifest.precision}")
    weights = weight_bytes(trials.prepared.source)
    keep = {kept.layer for kept in conversion.kept}
    share = sum(n for layer, n in weights.items() if layer in keep) / sum(weights.values())
    if share > budget:
        reasons = "; ".join(f"{k.layer}: {k.reason}" for k in conversion.kept[:4])
        raise _refusal(
            trials,
            f"to pass, {len(keep)} layers with {100 * share:.0f} % of the weights would have to "
            f"stay fp32, and --budget allows {100 * budget:.0f} % ({reasons})",
            hint=f"allow it with --budget {math.ceil(100 * share) / 100:g}",
        )


def _refusal(trials: TrialConverter, reason: str, *, hint: str = "") -> GateError:
    name = f"{trials.prepared.source.name} cannot become {trials.manifest.precision}"
    return GateError(f"{name}: {reason}; nothing was written", hint=hint)

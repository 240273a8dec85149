"""Results of an export, a conversion, an engine build and a training run as text."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vit_export.artifact.manifest import Conversion
from vit_export.artifact.vocabulary import LOGITS
from vit_export.cli.report.files import engine_verdict, product_counts
from vit_export.cli.report.gates import VERDICT, certificate_text, error_text
from vit_export.cli.report.tables import pairs, size, table

if TYPE_CHECKING:  # they import torch or onnx
    from vit_export.checkpoint.load import LoadReport
    from vit_export.pipeline.engine import EngineResult
    from vit_export.pipeline.export import ExportResult
    from vit_export.pipeline.quantize import QuantizeResult
    from vit_export.quantization.search import Sensitivity
    from vit_export.training.run import FinetuneResult

BAR_WIDTH = 30  # characters


def export_text(result: ExportResult) -> str:
    """Return the measurements, the conversion, a closing line, and the next commands."""
    manifest, quoted = result.manifest, shlex.quote(str(result.path))
    lines = [checkpoint_text(result.report), ""] if result.report is not None else []
    lines += [certificate_text(manifest.certificate), ""]
    if manifest.conversion is not None:
        lines += _conversion_lines(manifest.conversion)
        lines.append(f"accuracy: {result.comparison.stage.accuracy}")
    lines += [f"note: {note}" for note in result.notes]
    before, after = result.nodes
    remark = "" if before == after else f"{before} nodes simplified to {after}"
    commands = [f"validate {quoted}    (on any machine: needs numpy and onnxruntime only)"]
    if any(s.name == LOGITS and len(s.shape) == 2 for s in manifest.outputs):
        commands.insert(0, f"predict {quoted} PHOTO.jpg")
    return "\n".join([*lines, _closing_line(result, remark), *_next_lines(*commands)])


def checkpoint_text(report: LoadReport) -> str:
    """Return how every tensor of a checkpoint was used, and where the config came from."""
    rows = [
        ("weights", f"{report.source}: {report.layout} layout, sha256 {report.sha256[:12]}"),
        ("used", f"{len(report.used)} tensors"),
        *(("resampled", name) for name in report.resampled),
        *(("zero", f"{name} (asked for)") for name in report.reinitialised),
        *(("unused", name) for name in report.unused),
        ("inferred", ", ".join(f"{name} {value}" for name, value in report.inferred.items())),
        *(("assumed", f"{name}: {origin}") for name, origin in report.assumed.items()),
    ]
    return pairs(rows)


def quantize_text(result: QuantizeResult, picture: Path | None = None) -> str:
    """Return the measurements, the layers that stay wide, a closing line, and the next command."""
    manifest, stage = result.manifest, result.comparison.stage
    prefix = f"fp32 -> {manifest.precision}"
    lines = [certificate_text([s for s in manifest.certificate if s.name.startswith(prefix)]), ""]
    for kind, units in (("block", result.blocks), ("layer", result.layers)):
        if units:
            lines += [_sensitivity_table(units, kind, manifest.precision), ""]
    if manifest.conversion is not None:
        lines += _conversion_lines(manifest.conversion)
    lines.append(f"accuracy: {stage.accuracy}")
    if stage.passed is None:
        lines.append(f"note: {stage.reason}")
    if picture is not None:
        lines.append(f"picture: {picture}")
    lines.append(_closing_line(result, f"{result.size_bytes / result.source_bytes:.3f} of fp32"))
    return "\n".join([*lines, *_next_lines(f"validate {shlex.quote(str(result.path))} --trace")])


def engine_text(result: EngineResult) -> str:
    """Return the measurements of a built engine, a closing line, and the next commands."""
    sidecar, path = result.sidecar, result.path
    quoted = shlex.quote(str(path))
    return "\n".join([
        certificate_text(sidecar.manifest.certificate),
        "",
        *(f"warning: {warning}" for warning in result.warnings),
        f"{path}  {size(sidecar.plan_bytes)}  {result.seconds:.1f} s  {sidecar.backend} "
        f"{sidecar.version} for {', '.join(sidecar.compute_capabilities)}  "
        f"layers {product_counts(sidecar)}  {engine_verdict(sidecar)}",
        *_next_lines(f"predict {quoted} PHOTO.jpg", f"validate {quoted}    (on the device)"),
    ])  # fmt: skip


def training_text(result: FinetuneResult, *, no_curve: str = "") -> str:
    """Return the accuracy of a training run, its files or why it has no curve, and what is next."""
    best, files, names = result.best, result.files, result.ignored
    early = ", stopped early" if result.stopped_early else ""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    lines = [
        *([checkpoint_text(result.report), ""] if result.report is not None else []),
        f"{files.checkpoint}  best epoch {best.epoch} of {len(result.history)}{early}: "
        f"{100 * best.val_accuracy:.2f} % of {result.num_validation} validation images correct, "
        f"loss {best.val_loss:.4f} ({result.num_train} trained on)",
        f"{no_curve or f'curve: {files.curve}'}   history: {files.history}",
        *([f"not images, ignored: {', '.join(names[:3])}{more}"] if names else []),
        *([f"predictions: {result.predictions}"] if result.predictions else []),
        *_next_lines(f"onnx --weights {shlex.quote(str(files.checkpoint))}"),
    ]
    return "\n".join(lines)


def _next_lines(*commands: str) -> list[str]:
    """Return one line per `vit-export` command to try next."""
    heads = ("next:", *["     "] * len(commands))
    return [f"{head} vit-export {text}" for head, text in zip(heads, commands, strict=False)]


def _closing_line(result: ExportResult | QuantizeResult, remark: str) -> str:
    """Return path, size, remark if any, time, verdict and error of an artifact in one line."""
    stage = result.comparison.stage
    remark = remark and f" ({remark})"
    return (
        f"{result.path}  {size(result.size_bytes)}{remark}  {result.seconds:.1f} s  "
        f"{VERDICT[stage.passed]}  {error_text(stage, result.manifest.precision)}"
    )


def _conversion_lines(conversion: Conversion) -> list[str]:
    """Return how many nodes were narrowed, and which layers were not and why."""
    lines = [
        f"{conversion.narrowed} of {conversion.planned} nodes with weights converted "
        f"({conversion.recipe})"
    ]
    if conversion.calibration:
        lines.append(f"calibration: {conversion.calibration}")
    lines += [f"  {kept.layer} stays {kept.precision}: {kept.reason}" for kept in conversion.kept]
    return lines + [f"note: {note}" for note in conversion.notes]


def _sensitivity_table(units: Sequence[Sensitivity], kind: str, precision: str) -> str:
    """Return a table of the error with only one block, or only one layer, in low precision."""
    largest = max((u.error_ratio for u in units if math.isfinite(u.error_ratio)), default=0.0)

    def bar(ratio: float) -> str:
        if not math.isfinite(ratio):
            return "NaN or infinite"
        return "#" * round(BAR_WIDTH * ratio / largest) if largest else ""

    rows = [(u.unit, u.error_ratio, bar(u.error_ratio)) for u in units]
    return table((f"only this {kind} in {precision}", "error / tolerance", ""), rows)

"""What a gate measured, and what an export made of it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vit_export.artifact.manifest import Stage
from vit_export.cli.report.tables import cell, pairs, percent, size, table
from vit_export.gate.validate import Comparison

if TYPE_CHECKING:
    from vit_export.checkpoint.load import LoadReport
    from vit_export.pipeline.export import ExportResult


VERDICT = {True: "passed", False: "FAILED", None: "not measured"}


def certificate(stages: Sequence[Stage]) -> str:
    """Every measurement of every stage, as a table, and what could not be measured."""
    rows = [
        (
            s.name,
            m.output,
            m.batch,
            m.max_abs,
            m.tolerance,
            f"{m.cosine:.9f}",
            verdict(m.passed),
        )
        for s in stages
        for m in s.measurements
    ]
    headers = ("hop", "output", "batch", "max_abs", "tolerance", "cosine", "")
    lines = [table(headers, rows)]
    for stage in stages:
        lines += [f"{stage.name}: {note}" for note in stage.notes]
    return "\n".join(lines)


def verdict(passed: bool) -> str:
    """What stands behind a measurement: nothing when it passed."""
    return "" if passed else "FAILED"


def comparison(found: Comparison) -> str:
    """A gate's result: the table, the verdict, and where it diverges."""
    stage = found.stage
    lines = [certificate([stage])]
    if found.blocks:
        headers = ("tensor", "max_abs", "share of max|y64|", "tolerance", "cosine", "")
        rows = [(b.name, b.max_abs, b.relative, b.tolerance, _angle(b.cosine),
                 "diverges" if b.diverges else "") for b in found.blocks]  # fmt: skip
        lines.append(table(headers, rows))
    lines.append(
        f"{VERDICT[stage.passed]} on {stage.provider}: {stage.samples} samples, batches "
        f"{', '.join(map(str, stage.batches))}, rows differ by {cell(stage.row_max_abs)}, "
        f"top-1 agrees on {percent(stage.top1_agreement)}"
    )
    if stage.accuracy:
        lines.append(f"accuracy: {stage.accuracy}")
    if stage.reason:
        lines += [f"  - {reason}" for reason in stage.reasons]
    return "\n".join(lines)


def _angle(cosine: float | None) -> str | None:
    return None if cosine is None else f"{cosine:.6f}"


def loaded(report: LoadReport) -> str:
    """What became of every tensor of a checkpoint, and where the config came from."""
    rows = [
        ("weights", f"{report.source}: {report.layout} layout, sha256 {report.sha256[:12]}"),
        ("used", f"{len(report.used)} tensors"),
        *(("resampled", name) for name in report.resampled),
        *(("zero", f"{name} (asked for)") for name in report.reinitialised),
        *(("unused", name) for name in report.unused),
        ("seen", ", ".join(f"{name} {value}" for name, value in report.inferred.items())),
        *(("assumed", f"{name}: {origin}") for name, origin in report.assumed.items()),
    ]
    return pairs(rows)


def exported(result: ExportResult) -> str:
    """What an export made, and what to do next."""
    stage, name = result.comparison.stage, result.path
    lines = [
        *([loaded(result.report), ""] if result.report is not None else []),
        certificate([c.stage for c in result.comparisons]),
        "",
        f"{name}  {size(result.size_bytes)}  {result.seconds:.1f} s  "
        f"max|y - y64| {cell(stage.max_abs)} (allowed {cell(stage.tolerance)}, torch float32 "
        f"{cell(stage.baseline_max_abs)})  {result.nodes[0]} -> {result.nodes[1]} nodes",
    ]
    typed = shlex.quote(str(name))
    following = [f"validate {typed}    (anywhere: needs numpy and onnxruntime only)"]
    if any(s.name == "logits" and len(s.shape) == 2 for s in result.manifest.outputs):
        following.insert(0, f"predict {typed} PHOTO.jpg")
    lines += [f"note: {note}" for note in result.notes]
    lines += [f"{'next:' if i == 0 else '     '} vit-export {c}" for i, c in enumerate(following)]
    return "\n".join(lines)

"""Measurements of a gate as text."""

from collections.abc import Sequence

from vit_export.artifact.manifest import Stage
from vit_export.cli.report.tables import cell, table
from vit_export.gate.tolerances import tolerances_of
from vit_export.gate.validate import Comparison

VERDICT = {True: "passed", False: "FAILED", None: "not measured"}


def certificate_text(stages: Sequence[Stage]) -> str:
    """Return every measurement of every stage as a table, and the notes below it."""
    headers = ("stage", "output", "batch", "max_abs", "tolerance", "cosine", "")
    rows = [
        (s.name, m.output, m.batch, m.max_abs, m.tolerance, f"{m.cosine:.9f}",
         "" if m.passed else "FAILED")
        for s in stages
        for m in s.measurements
    ]  # fmt: skip
    notes = [f"{stage.name}: {note}" for stage in stages for note in stage.notes]
    return "\n".join([table(headers, rows), *notes])


def comparison_text(comparison: Comparison) -> str:
    """Return the result of a gate: measurements, error per block, verdict, and reasons."""
    stage = comparison.stage
    lines = [certificate_text([stage])]
    if comparison.blocks:
        headers = ("tensor", "max_abs", "share of max|y64|", "tolerance", "cosine", "")
        rows = [
            (b.name, b.max_abs, b.relative, b.tolerance,
             None if b.cosine is None else f"{b.cosine:.6f}", "" if b.accepted else "diverges")
            for b in comparison.blocks
        ]  # fmt: skip
        lines.append(table(headers, rows))
    share = stage.top1_agreement
    agreement = (
        "" if share is None else f", top-1 agrees on {100 * share:.4g} % of the golden images"
    )
    rows_differ = "" if stage.row_max_abs is None else f", rows differ by {cell(stage.row_max_abs)}"
    lines.append(
        f"{VERDICT[stage.passed]} on {stage.provider}: {stage.samples} samples, batches "
        f"{', '.join(map(str, stage.batches))}{rows_differ}{agreement}"
    )
    if stage.accuracy:
        lines.append(f"accuracy: {stage.accuracy}")
    if stage.reason:
        lines += [f"  - {reason}" for reason in stage.reasons]
    return "\n".join(lines)


def error_text(stage: Stage, precision: str) -> str:
    """Return the error of an artifact in this precision, and its limits, in one line."""
    tolerances = tolerances_of(precision, source=stage.name)
    limits = [] if stage.tolerance is None else [f"tolerance {cell(stage.tolerance)}"]
    if stage.baseline_max_abs is not None and tolerances.torch_name:
        limits.append(f"{tolerances.torch_name} {cell(stage.baseline_max_abs)}")
    allowed = f" ({', '.join(limits)})" if limits else ""
    error = f"max|y - y64| {cell(stage.max_abs)}{allowed}"
    if precision == "fp32" or stage.cosine is None:
        return error
    return f"{error}  cosine {stage.cosine:.6f}"

"""Result of an export as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vit_export.cli.report.conversions import conversion_lines
from vit_export.cli.report.gates import certificate_text
from vit_export.cli.report.outcome import artifact_commands, closing_line, next_lines
from vit_export.cli.report.tables import pairs

if TYPE_CHECKING:  # they import torch
    from vit_export.checkpoint.load import LoadReport
    from vit_export.pipeline.export import ExportResult


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


def export_text(result: ExportResult) -> str:
    """Return the measurements, the conversion, a closing line, and the next commands."""
    manifest, stage = result.manifest, result.comparison.stage
    lines = []
    if result.report is not None:
        lines += [checkpoint_text(result.report), ""]
    lines += [certificate_text(manifest.certificate), ""]
    if manifest.conversion is not None:
        lines += [*conversion_lines(manifest.conversion), f"accuracy: {stage.accuracy}"]
    lines += [f"note: {note}" for note in result.notes]
    lines.append(
        closing_line(
            result.path, result.size_bytes, result.seconds, stage, manifest.precision,
            remark=f"{result.nodes[0]} nodes simplified to {result.nodes[1]}",
        )
    )  # fmt: skip
    return "\n".join([*lines, *next_lines(artifact_commands(result.path, manifest))])

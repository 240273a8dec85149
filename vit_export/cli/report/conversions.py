"""Result of a conversion to a narrower precision as text."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vit_export.artifact.manifest import Conversion
from vit_export.cli.report.gates import certificate_text
from vit_export.cli.report.outcome import closing_line, next_lines
from vit_export.cli.report.tables import table

if TYPE_CHECKING:  # they import onnx
    from vit_export.pipeline.quantize import QuantizeResult
    from vit_export.quantization.search import Sensitivity

BAR_WIDTH = 30  # characters


def quantize_text(result: QuantizeResult, picture: Path | None = None) -> str:
    """Return the measurements, the layers that stay wide, a closing line, and the next command."""
    manifest, stage = result.manifest, result.comparison.stage
    prefix = f"fp32 -> {manifest.precision}"
    lines = [certificate_text([s for s in manifest.certificate if s.name.startswith(prefix)]), ""]
    if result.blocks:
        lines += [sensitivity_table(result.blocks, "block", manifest.precision), ""]
    if result.layers:
        lines += [sensitivity_table(result.layers, "layer", manifest.precision), ""]
    if manifest.conversion is not None:
        lines += conversion_lines(manifest.conversion)
    lines.append(f"accuracy: {stage.accuracy}")
    if stage.passed is None:
        lines.append(f"note: {stage.reason}")
    if picture is not None:
        lines.append(f"picture: {picture}")
    lines.append(
        closing_line(
            result.path, result.size_bytes, result.seconds, stage, manifest.precision,
            remark=f"{result.size_bytes / result.source_bytes:.3f} of fp32",
        )
    )  # fmt: skip
    return "\n".join([*lines, *next_lines([f"validate {shlex.quote(str(result.path))} --trace"])])


def conversion_lines(conversion: Conversion) -> list[str]:
    """Return how many nodes were narrowed, and which layers were not and why."""
    lines = [
        f"{conversion.narrowed} of {conversion.planned} nodes with weights converted "
        f"({conversion.recipe})"
    ]
    if conversion.calibration:
        lines.append(f"calibration: {conversion.calibration}")
    lines += [f"  {kept.layer} stays {kept.precision}: {kept.reason}" for kept in conversion.kept]
    return lines + [f"note: {note}" for note in conversion.notes]


def sensitivity_table(units: Sequence[Sensitivity], kind: str, precision: str) -> str:
    """Return a table of the error with only one block, or only one layer, in low precision."""
    largest = max((u.error_ratio for u in units if math.isfinite(u.error_ratio)), default=0.0)
    rows = [(u.unit, u.error_ratio, _bar(u.error_ratio, largest)) for u in units]
    return table((f"only this {kind} in {precision}", "error / tolerance", ""), rows)


def _bar(ratio: float, largest: float) -> str:
    if not math.isfinite(ratio):
        return "NaN or infinite"
    return "#" * round(BAR_WIDTH * ratio / largest) if largest else ""

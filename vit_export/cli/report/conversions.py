"""What a conversion to a narrower precision made, and what stayed wide."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vit_export.artifact.manifest import Conversion
from vit_export.cli.report.gates import VERDICT, certificate
from vit_export.cli.report.tables import cell, size, table

if TYPE_CHECKING:
    from vit_export.pipeline.quantize import QuantizeResult
    from vit_export.quantization.search import Sensitivity


def quantized(result: QuantizeResult, picture: Path | None = None) -> str:
    """What a conversion made, and what to do next."""
    manifest, stage, name = result.manifest, result.comparison.stage, result.path
    own = [h for h in manifest.certificate if h.name.startswith(f"fp32 -> {manifest.precision}")]
    lines = [certificate(own)]
    if result.blocks:
        lines += ["", sensitivity(result.blocks, "block")]
    if result.layers:
        lines += ["", sensitivity(result.layers, "layer")]
    if manifest.conversion is not None:
        lines += ["", *conversion(manifest.conversion)]
    lines += [
        f"accuracy: {stage.accuracy}",
        f"{name}  {size(result.size_bytes)} ({result.size_bytes / result.source_bytes:.3f} of "
        f"fp32)  {result.seconds:.1f} s  {VERDICT[stage.passed]}  "
        f"max|y - y64| {cell(stage.max_abs)} (allowed {cell(stage.tolerance)})  "
        f"cosine {cell(stage.cosine)}",
    ]
    if stage.passed is None:
        lines.append(f"note: {stage.reason}")
    if picture is not None:
        lines.append(f"picture: {picture}")
    lines.append(f"next: vit-export validate {shlex.quote(str(name))} --trace")
    return "\n".join(lines)


def conversion(done: Conversion) -> list[str]:
    """How many nodes were narrowed, and which layers were not and why."""
    lines = [f"{done.narrowed} of {done.planned} nodes with weights narrowed ({done.recipe})"]
    if done.calibration:
        lines.append(f"calibration: {done.calibration}")
    lines += [f"  {kept.layer} stays {kept.precision}: {kept.reason}" for kept in done.kept]
    lines += [f"note: {note}" for note in done.notes]
    return lines


def sensitivity(found: Sequence[Sensitivity], what: str) -> str:
    """What each unit does to the result when it alone is narrow, as a table."""
    most = max((s.harm for s in found if s.harm < float("inf")), default=0.0)
    rows = [(s.unit, s.harm, _bar(s.harm, most)) for s in found]
    return table((f"only this {what} narrow", "x allowed", ""), rows)


def _bar(harm: float, most: float) -> str:
    if harm == float("inf"):
        return "NaN or infinite"
    return "#" * round(30 * harm / most) if most else ""

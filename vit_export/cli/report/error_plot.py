"""Pictures of error per block: what a trace found, and what each block does when narrow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vit_export.cli.report.plot_style import save
from vit_export.errors import OutputError

if TYPE_CHECKING:
    from vit_export.gate.trace import BlockError
    from vit_export.pipeline.quantize import QuantizeResult

WITHIN, BEYOND, LIMIT = "#3b6fb6", "#c8452d", "#555555"


def sensitivity_plot(result: QuantizeResult, path: Path) -> None:
    """Bars of each block's harm when it alone is narrow; a line where the gate would fail."""
    units, harms = zip(*((s.unit, s.harm) for s in result.blocks), strict=True)
    title = f"{result.path.name}: error with only this block in {result.manifest.precision}"
    _bars(path, title, units, harms, "distance from torch float64, in shares of what is allowed")


def trace_plot(blocks: Sequence[BlockError], title: str, path: Path) -> None:
    """Bars of each block's distance from the oracle, and what is allowed.

    Raises:
        OutputError: No block was measured, or the picture cannot be written.
    """
    known = [b for b in blocks if b.max_abs is not None]
    if not known:
        raise OutputError(f"cannot draw {path}: no block was measured")
    names = [b.name for b in known]
    if all(b.tolerance for b in known):
        shares = [(b.max_abs or 0.0) / (b.tolerance or 1.0) for b in known]
        _bars(path, title, names, shares, "max|y - y64|, in shares of what is allowed")
    else:
        shares = [b.relative or 0.0 for b in known]
        _bars(path, title, names, shares, "max|y - y64| / max|y64|", limit=None)


def _bars(
    path: Path,
    title: str,
    names: Sequence[str],
    values: Sequence[float],
    label: str,
    *,
    limit: float | None = 1.0,
) -> None:
    figure = Figure(figsize=(9, max(2.5, 0.28 * len(names) + 1.4)), layout="constrained")
    axes: Axes = figure.subplots()
    finite = [v for v in values if math.isfinite(v) and v > 0]
    top = max([*finite, limit or 0.0], default=1.0) * 3
    low = min([*finite, limit or top], default=top) / 3
    shown = [v if math.isfinite(v) else top for v in values]
    beyond = [limit is not None and not v <= limit for v in values]
    axes.barh(range(len(names)), [max(v, low) for v in shown], left=0,
              color=[BEYOND if b else WITHIN for b in beyond])  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(low, top)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    for row, value in enumerate(values):
        text = f" {value:.2g}" if math.isfinite(value) else " NaN or infinite "
        axes.text(
            max(shown[row], low), row, text, va="center", fontsize=8,
            ha="left" if math.isfinite(value) else "right",
            color="black" if math.isfinite(value) else "white",
        )  # fmt: skip
    if limit is not None:
        axes.axvline(limit, color=LIMIT, linestyle="--", linewidth=1)
        above = axes.get_xaxis_transform()
        axes.text(limit, 1.01, "allowed", color=LIMIT, fontsize=8, ha="center", transform=above)
    axes.set_xlabel(label, fontsize=9)
    axes.set_title(title, fontsize=10, loc="left", pad=16, parse_math=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    save(figure, path)

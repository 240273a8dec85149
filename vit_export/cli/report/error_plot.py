"""Error per encoder block as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from vit_export.cli.report.plot_style import COLORS, FONT_SIZE, INK, SIZE_INCHES, save, style
from vit_export.errors import OutputError
from vit_export.gate.trace import BlockError

if TYPE_CHECKING:  # it imports onnx
    from vit_export.quantization.search import Sensitivity

WITHIN, BEYOND = COLORS[:2]
BAR_INCHES = 0.28
PER_TOLERANCE = "max|y - y64| / tolerance"


def sensitivity_plot(blocks: Sequence[Sensitivity], title: str, path: Path) -> None:
    """Draw the error with only one block in low precision as bars; a line marks the tolerance."""
    names, ratios = [b.unit for b in blocks], [b.error_ratio for b in blocks]
    _draw_bars(path, title, names, ratios, PER_TOLERANCE, limit=1.0)


def trace_plot(blocks: Sequence[BlockError], title: str, path: Path) -> None:
    """Draw the distance of each block from the float64 reference, and its tolerance.

    Raises:
        OutputError: No block was measured, or the picture cannot be written.
    """
    known = [(b, b.max_abs) for b in blocks if b.max_abs is not None]
    if not known:
        raise OutputError(f"cannot draw {path}: no block was measured")
    names = [block.name for block, _ in known]
    ratios = [max_abs / block.tolerance for block, max_abs in known if block.tolerance]
    if len(ratios) == len(known):
        _draw_bars(path, title, names, ratios, PER_TOLERANCE, limit=1.0)
    else:
        shares = [block.relative or 0.0 for block, _ in known]
        _draw_bars(path, title, names, shares, "max|y - y64| / max|y64|", limit=None)


def _draw_bars(
    path: Path,
    title: str,
    names: Sequence[str],
    values: Sequence[float],
    label: str,
    *,
    limit: float | None,
) -> None:
    height = max(2.5, BAR_INCHES * len(names) + 1.4)
    figure = Figure(figsize=(SIZE_INCHES[0], height), layout="constrained")
    axes = figure.add_subplot()
    positive = [v for v in values if math.isfinite(v) and v > 0]
    right = 3 * max([*positive, limit or 0.0], default=1.0)
    left = min([*positive, limit or right], default=right) / 3
    rows = range(len(names))
    lengths = [max(v, left) if math.isfinite(v) else right for v in values]
    colors = [BEYOND if limit is not None and not v <= limit else WITHIN for v in values]
    bars = axes.barh(rows, lengths, left=0, color=colors)
    texts = [f"{v:.2g}" if math.isfinite(v) else "NaN or infinite" for v in values]
    axes.bar_label(bars, texts, padding=3, fontsize=FONT_SIZE - 1)
    style(axes, title)
    axes.grid(visible=False, axis="y")
    axes.set_xscale("log")
    axes.set_xlim(left, right * 3)
    axes.set_yticks(rows, names)
    axes.invert_yaxis()
    axes.set_xlabel(label, fontsize=FONT_SIZE)
    if limit is not None:
        axes.axvline(limit, color=INK, linestyle="--", linewidth=1)
        axes.text(
            limit, 1.01, "tolerance", color=INK, fontsize=FONT_SIZE - 1, ha="center",
            transform=axes.get_xaxis_transform(),
        )  # fmt: skip
    save(figure, path)

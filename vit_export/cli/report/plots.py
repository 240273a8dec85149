"""What the pictures show: latency against error, error per block, and learning curves.

Each function draws into an empty figure, which `pictures.draw_picture` makes and writes.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vit_export.benchmark.run import Row
from vit_export.cli.report.pictures import COLORS, FONT_SIZE, GRID, INK, SIZE_INCHES, style
from vit_export.errors import OutputError
from vit_export.gate.trace import BlockError

if TYPE_CHECKING:  # matplotlib may not be installed; the others import onnx and torch
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vit_export.quantization.search import Sensitivity
    from vit_export.training.history import EpochRecord

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MARK_POINTS = 13
LOG_FROM_RATIO = 10  # largest / smallest value from which an axis is logarithmic
LEGEND_LINE_INCHES = 0.2
TITLE_CHARACTERS = 105  # of a line
WITHIN, BEYOND = COLORS[:2]
BAR_INCHES = 0.28
PARTS = {"train": "training", "val": "validation"}  # prefix of a field -> label


def latency_plot(figure: Figure, rows: Sequence[Row], title: str) -> None:
    """Draw latency against error: further down and to the left is better.

    A candidate has one colour, a batch size one shape, and a mark that failed its gate is hollow.
    Marks may cover each other, so the legend has a line with the values of each.
    """
    shown = [
        (row, row.median_ms / row.batch, row.max_abs)
        for row in rows
        if row.median_ms is not None and row.max_abs is not None
    ]
    if not shown:
        raise OutputError("no row has both a time and a distance")
    candidates = list(dict.fromkeys((row.name, row.provider) for row in rows))
    batches = list(dict.fromkeys(row.batch for row in rows))
    one_provider = len({row.provider for row in rows}) == 1
    width, height = SIZE_INCHES
    figure.set_size_inches(width, height + LEGEND_LINE_INCHES * len(shown))
    axes = figure.add_subplot()
    for number, (row, ms, max_abs) in enumerate(shown, 1):
        failed = row.accepted is False
        color = COLORS[candidates.index((row.name, row.provider)) % len(COLORS)]
        name = (
            row.name
            + ("" if one_provider else f" on {row.provider}")
            + ("" if len(batches) == 1 else f", batch {row.batch}")
            + (" (FAILED its gate)" if failed else "")
        )
        axes.plot(
            ms, max_abs, MARKERS[batches.index(row.batch) % len(MARKERS)], color=color,
            markersize=MARK_POINTS, markerfacecolor="white" if failed else color,
            label=f"{number}  {name}: {ms:.3g} ms, {max_abs:.3g}",
        )  # fmt: skip
        axes.annotate(
            str(number), (ms, max_abs), ha="center", va="center", weight="bold",
            fontsize=FONT_SIZE - 2, color=color if failed else "white",
        )  # fmt: skip
    per_image = f"batch {batches[0]}" if len(batches) == 1 else "median of a run / batch"
    axes.set_xlabel(f"milliseconds per image ({per_image})", fontsize=FONT_SIZE)
    axes.set_ylabel("max|y - y64| over the golden images", fontsize=FONT_SIZE)
    style(axes, textwrap.fill(title, TITLE_CHARACTERS))
    axes.margins(0.18)
    _scale(axes, [ms for _, ms, _ in shown], [max_abs for *_, max_abs in shown])
    legend = figure.legend(
        loc="outside lower left", fontsize=FONT_SIZE, frameon=False, markerscale=0.5
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _scale(axes: Axes, xs: Sequence[float], ys: Sequence[float]) -> None:
    if max(xs) >= LOG_FROM_RATIO * min(xs):
        axes.set_xscale("log", subs=(2, 5))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}")
        axes.tick_params(which="minor", labelsize=FONT_SIZE - 1)
    else:
        axes.set_xlim(left=0, right=1.25 * max(xs))
    if min(ys) > 0 and max(ys) >= LOG_FROM_RATIO * min(ys):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0, top=1.25 * max(ys) or 1)


def sensitivity_plot(figure: Figure, blocks: Sequence[Sensitivity], title: str) -> None:
    """Draw the error with only one block in low precision as bars; a line marks the tolerance."""
    _draw_bars(figure, title, {block.unit: block.error_ratio for block in blocks}, limit=1.0)


def trace_plot(figure: Figure, blocks: Sequence[BlockError], title: str) -> None:
    """Draw the distance of each block from the float64 reference, and its tolerance."""
    known = [(b, b.max_abs) for b in blocks if b.max_abs is not None]
    if not known:
        raise OutputError("no block was measured")
    ratios = {b.name: max_abs / b.tolerance for b, max_abs in known if b.tolerance}
    if len(ratios) == len(known):
        _draw_bars(figure, title, ratios, limit=1.0)
    else:
        _draw_bars(figure, title, {b.name: b.relative or 0.0 for b, _ in known}, limit=None)


def _draw_bars(figure: Figure, title: str, bars: dict[str, float], limit: float | None) -> None:
    """Draw errors by name: as multiples of the tolerance, or, without a limit, as shares."""
    figure.set_size_inches(SIZE_INCHES[0], max(2.5, BAR_INCHES * len(bars) + 1.4))
    axes = figure.add_subplot()
    rows, values = range(len(bars)), bars.values()
    positive = [v for v in values if math.isfinite(v) and v > 0]
    right = 3 * max([*positive, limit or 0.0], default=1.0)
    left = min([*positive, limit or right], default=right) / 3
    lengths = [max(v, left) if math.isfinite(v) else right for v in values]
    colors = [BEYOND if limit is not None and not v <= limit else WITHIN for v in values]
    texts = [f"{v:.2g}" if math.isfinite(v) else "NaN or infinite" for v in values]
    drawn = axes.barh(rows, lengths, left=0, color=colors)
    axes.bar_label(drawn, texts, padding=3, fontsize=FONT_SIZE - 1)
    style(axes, title)
    axes.grid(visible=False, axis="y")
    axes.set_xscale("log")
    axes.set_xlim(left, right * 3)
    axes.set_yticks(rows, list(bars))
    axes.invert_yaxis()
    unit = "max|y64|" if limit is None else "tolerance"
    axes.set_xlabel(f"max|y - y64| / {unit}", fontsize=FONT_SIZE)
    if limit is not None:
        axes.axvline(limit, color=INK, linestyle="--", linewidth=1)
        axes.text(
            limit, 1.01, "tolerance", color=INK, fontsize=FONT_SIZE - 1, ha="center",
            transform=axes.get_xaxis_transform(),
        )  # fmt: skip


def training_plot(figure: Figure, history: Sequence[EpochRecord], best: EpochRecord) -> None:
    """Draw training and validation loss on the left, accuracies on the right, by epoch."""
    figure.set_size_inches(10.0, 4.2)
    figure.suptitle(
        f"best epoch {best.epoch} of {len(history)}: "
        f"{best.val_accuracy:.2%} of the validation images correct",
        fontsize=FONT_SIZE + 2,
        color=INK,
    )
    epochs = [record.epoch for record in history]
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for (part, label), color in zip(PARTS.items(), COLORS, strict=False):
            values = [getattr(record, f"{part}_{quantity}") for record in history]
            axes.plot(epochs, values, color=color, label=label, marker="o", markersize=3)
        axes.axvline(best.epoch, color=GRID, linewidth=1.5, zorder=0)
        axes.set_xlabel("epoch", fontsize=FONT_SIZE)
        style(axes, quantity)
        axes.locator_params(axis="x", integer=True, min_n_ticks=1)
        axes.legend(fontsize=FONT_SIZE, frameon=False)

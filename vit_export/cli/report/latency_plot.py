"""Latency against error as a picture: further down and to the left is better."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, StrMethodFormatter

from vit_export.benchmark.run import Row
from vit_export.cli.report.plot_style import COLORS, FONT_SIZE, SIZE_INCHES, save, style
from vit_export.errors import OutputError

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MARK_POINTS = 13
LOG_FROM_RATIO = 10  # largest / smallest value from which an axis is logarithmic
LEGEND_LINE_INCHES = 0.2
TITLE_CHARACTERS = 105  # of a line


@dataclass(frozen=True)
class Mark:
    """One row in the picture."""

    label: str
    ms: float  # per image
    max_abs: float  # distance from the float64 reference
    color: str
    marker: str
    failed: bool  # its gate; the mark is then hollow


def marks(rows: Sequence[Row]) -> list[Mark]:
    """Return the rows that have a time and a distance: a colour each, a shape per batch size."""
    titles = list(dict.fromkeys((row.name, row.provider) for row in rows))
    batches = list(dict.fromkeys(row.batch for row in rows))
    one_provider = len({row.provider for row in rows}) == 1
    return [
        Mark(
            label=row.name
            + ("" if one_provider else f" on {row.provider}")
            + ("" if len(batches) == 1 else f", batch {row.batch}")
            + (" (FAILED its gate)" if row.accepted is False else ""),
            ms=row.median_ms / row.batch,
            max_abs=row.max_abs,
            color=COLORS[titles.index((row.name, row.provider)) % len(COLORS)],
            marker=MARKERS[batches.index(row.batch) % len(MARKERS)],
            failed=row.accepted is False,
        )
        for row in rows
        if row.median_ms is not None and row.max_abs is not None
    ]


def left_out(rows: Sequence[Row]) -> list[str]:
    """Return the titles of rows that lack a time or a distance, so that no mark shows them."""
    return [
        f"{row.name} on {row.provider}, batch {row.batch}"
        for row in rows
        if row.median_ms is None or row.max_abs is None
    ]


def latency_plot(rows: Sequence[Row], path: Path, *, title: str = "") -> None:
    """Draw rows as numbered marks; the legend below has their values: marks may cover each other.

    Raises:
        OutputError: No row has both a time and a distance, or the picture cannot be written; an
            existing picture is kept.
    """
    shown = marks(rows)
    if not shown:
        raise OutputError(f"cannot draw {path}: no row has both a time and a distance")
    width, height = SIZE_INCHES
    height += LEGEND_LINE_INCHES * len(shown)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    for number, mark in enumerate(shown, 1):
        axes.plot(
            mark.ms, mark.max_abs, mark.marker, color=mark.color, markersize=MARK_POINTS,
            markerfacecolor="white" if mark.failed else mark.color,
            label=f"{number}  {mark.label}: {mark.ms:.3g} ms, {mark.max_abs:.3g}",
        )  # fmt: skip
        axes.annotate(
            str(number), (mark.ms, mark.max_abs), ha="center", va="center", weight="bold",
            fontsize=FONT_SIZE - 2, color=mark.color if mark.failed else "white",
        )  # fmt: skip
    batches = {row.batch for row in rows}
    per_image = f"batch {batches.pop()}" if len(batches) == 1 else "median of a run / batch"
    axes.set_xlabel(f"milliseconds per image ({per_image})", fontsize=FONT_SIZE)
    axes.set_ylabel("max|y - y64| over the golden images", fontsize=FONT_SIZE)
    style(axes, textwrap.fill(title, TITLE_CHARACTERS))
    axes.margins(0.18)
    _scale(axes, [mark.ms for mark in shown], [mark.max_abs for mark in shown])
    legend = figure.legend(
        loc="outside lower left", fontsize=FONT_SIZE, frameon=False, markerscale=0.5
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    save(figure, path)


def _scale(axes: Axes, xs: Sequence[float], ys: Sequence[float]) -> None:
    if max(xs) >= LOG_FROM_RATIO * min(xs):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axes.xaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
        axes.tick_params(which="minor", labelsize=FONT_SIZE - 1)
    else:
        axes.set_xlim(left=0, right=1.25 * max(xs))
    if min(ys) > 0 and max(ys) >= LOG_FROM_RATIO * min(ys):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0, top=1.25 * max(ys) or 1)

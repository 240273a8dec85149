"""Latency against error, as a picture: down and to the left is better."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.ticker import LogLocator, StrMethodFormatter
from matplotlib.transforms import Bbox

from vit_export.benchmark.run import Row
from vit_export.cli.report.plot_style import (
    COLORS,
    FONT_SIZE,
    GRID,
    INK,
    LOG_FROM_RATIO,
    MARKERS,
    SIZE_INCHES,
    save,
)
from vit_export.errors import OutputError

# Where a label may stand, in points from its mark: near places first.
PLACES = [
    (x * step, y * step)
    for step in (7, 14, 24, 38, 56, 80)
    for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
]
MARK_RADIUS = 5  # points
MOST_NAMED = 6  # marks with their names beside them; more are numbered, with a legend below
LEGEND_LINE_INCHES = 0.2
NARROW_LABEL = 45  # characters of which two columns fit
TITLE_CHARACTERS = 105  # of a line


@dataclass(frozen=True)
class Mark:
    """One row in the picture: milliseconds an image, and the distance from golden.

    One outside its gate is hollow.
    """

    label: str
    ms: float
    max_abs: float
    color: str
    marker: str
    failed: bool = False


def marks(rows: Sequence[Row]) -> list[Mark]:
    """The rows that have both a time and a distance: a colour each, a shape per batch size."""
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
    """Titles of the rows that the picture cannot show: they lack a time or a distance."""
    return [
        f"{row.name} on {row.provider}, batch {row.batch}"
        for row in rows
        if row.median_ms is None or row.max_abs is None
    ]


def draw(rows: Sequence[Row], path: Path, *, subtitle: str = "") -> None:
    """Draw rows and write the picture.

    Args:
        rows: What a benchmark measured.
        path: A .png, .svg or .pdf file.
        subtitle: Where it was measured.

    Raises:
        OutputError: There is nothing to show, or it cannot be written there; a picture that
            stands there stays.
    """
    shown = marks(rows)
    if not shown:
        raise OutputError(f"cannot draw {path}: no row has both a time and a distance")
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    batches = sorted({row.batch for row in rows})
    for mark in shown:
        axes.plot(
            mark.ms, mark.max_abs, mark.marker, color=mark.color, markersize=2 * MARK_RADIUS,
            markerfacecolor="white" if mark.failed else mark.color,
        )  # fmt: skip
    if len(shown) > MOST_NAMED:
        shown = _numbered(figure, axes, shown)
    of = f"batch {batches[0]}" if len(batches) == 1 else "median of a run / batch"
    axes.set_xlabel(f"milliseconds per image ({of})", fontsize=FONT_SIZE)
    axes.set_ylabel("max|y - y64| over the golden images", fontsize=FONT_SIZE)
    title = textwrap.fill(subtitle, TITLE_CHARACTERS)
    axes.set_title(title, fontsize=FONT_SIZE - 1, color=INK, loc="left", parse_math=False)
    axes.tick_params(labelsize=FONT_SIZE)
    axes.grid(visible=True, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(0.18)
    _scale(axes, [mark.ms for mark in shown], [mark.max_abs for mark in shown])
    canvas.draw()  # places depend on the layout
    _label(axes, canvas, shown)
    save(figure, path)


def _numbered(figure: Figure, axes: Axes, shown: Sequence[Mark]) -> list[Mark]:
    """Name the marks in a legend below the axes, and leave a number beside each."""
    columns = 2 if max(len(mark.label) for mark in shown) <= NARROW_LABEL else 1
    width, height = SIZE_INCHES
    figure.set_size_inches(
        width, height + LEGEND_LINE_INCHES * math.ceil(len(shown) / columns), forward=False
    )
    legend = figure.legend(
        axes.lines,
        [f"{number}  {mark.label}" for number, mark in enumerate(shown, 1)],
        loc="outside lower left",
        ncols=columns,
        fontsize=FONT_SIZE,
        frameon=False,
        markerscale=0.7,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return [dataclasses.replace(mark, label=str(n)) for n, mark in enumerate(shown, 1)]


def _scale(axes: Axes, xs: Sequence[float], ys: Sequence[float]) -> None:
    if xs and max(xs) >= LOG_FROM_RATIO * min(xs):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axes.xaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
        axes.tick_params(which="minor", labelsize=FONT_SIZE - 1)
    else:
        axes.set_xlim(left=0, right=1.25 * max(xs, default=1))
    if ys and min(ys) > 0 and max(ys) >= LOG_FROM_RATIO * min(ys):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0, top=1.25 * max(ys, default=1) or 1)


def _label(axes: Axes, canvas: FigureCanvasAgg, shown: Sequence[Mark]) -> None:
    """Write labels where they cover neither marks nor each other, as near as there is room."""
    renderer = canvas.get_renderer()
    points = renderer.points_to_pixels(1)
    radius = MARK_RADIUS * points
    taken = []
    for mark in shown:
        x, y = axes.transData.transform((mark.ms, mark.max_abs))
        taken.append(Bbox.from_extents(x - radius, y - radius, x + radius, y + radius))
    room = axes.get_window_extent(renderer)
    for mark in shown:
        best: tuple[float, Annotation, Bbox] | None = None
        for place in PLACES:
            text = _annotate(axes, mark, place)
            box = text_box(text, renderer)
            cost = sum(_overlap(box, other) for other in taken) + _outside(box, room)
            if best is None or cost < best[0]:
                if best is not None:
                    best[1].remove()
                best = (cost, text, box)
            else:
                text.remove()
            if best[0] == 0:
                break
        if best is not None:
            taken.append(best[2])


def text_box(text: Annotation, renderer: RendererAgg) -> Bbox:
    """Where the words stand, without the line that leads to the mark."""
    text.update_positions(renderer)
    return Text.get_window_extent(text, renderer)


def _annotate(axes: Axes, mark: Mark, place: tuple[int, int]) -> Annotation:
    x, y = place
    return axes.annotate(
        mark.label,
        (mark.ms, mark.max_abs),
        xytext=place,
        textcoords="offset points",
        fontsize=FONT_SIZE,
        parse_math=False,
        color=mark.color,
        ha="left" if x > 0 else "right" if x < 0 else "center",
        va="bottom" if y > 0 else "top" if y < 0 else "center",
        arrowprops={"arrowstyle": "-", "color": mark.color, "linewidth": 0.6}
        if max(abs(x), abs(y)) > 14
        else None,
    )


def _overlap(a: Bbox, b: Bbox) -> float:
    shared = Bbox.intersection(a, b)
    return 0.0 if shared is None else float(shared.width * shared.height)


def _outside(box: Bbox, room: Bbox) -> float:
    inside = Bbox.intersection(box, room)
    shown = 0.0 if inside is None else float(inside.width * inside.height)
    return float(box.width * box.height) - shown

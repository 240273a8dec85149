"""Two pictures: latency against error, and images per second."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_export.cli.report.pictures import COLORS, FONT_SIZE, INK, draw_picture, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OURS, PEERS = COLORS[1], COLORS[0]
BAR_INCHES = 0.24
HEAD_INCHES = 0.9  # title and axis of a panel
LEAST_SHARE = 0.045  # of the height of a panel, between two names
Results = Mapping[str, Any]


def color_of(name: str) -> str:
    """Return the colour of a candidate: vit-export's own stand out."""
    return OURS if name.startswith("vit-export") else PEERS


def latency_picture(figure: Figure, variants: Iterable[Results]) -> None:
    """Draw a panel per variant: further down and to the left is better."""
    variants = list(variants)
    figure.set_size_inches(5.2 * len(variants), 5.0)
    for axes, results in zip(figure.subplots(1, len(variants), squeeze=False)[0], variants,
                             strict=True):  # fmt: skip
        rows = [r for r in results["sessions"] if r["batch"] == 1 and "ms_per_image" in r]
        for row in rows:
            axes.plot(row["ms_per_image"], row["max_abs"], "o", color=color_of(row["name"]))
        style(axes, f"{results['variant']}, batch 1")
        axes.set_yscale("log")
        longest = max(row["ms_per_image"] for row in rows)
        axes.set_xlim(0, 2.0 * longest)  # room for the names
        axes.margins(y=0.12)
        _write_names(axes, rows, 1.1 * longest)
        axes.set_xlabel("milliseconds per image", fontsize=FONT_SIZE)
        axes.set_ylabel("max|y - y64| of the logits", fontsize=FONT_SIZE)


def _write_names(axes: Axes, rows: list[Results], left: float) -> None:
    """Write the names in a column beside the marks, with a line to each.

    Of marks at one height, the leftmost has the highest name, so that lines do not cross.
    """
    rows = sorted(
        rows, key=lambda row: (round(2 * math.log10(row["max_abs"])), -row["ms_per_image"])
    )
    heights: list[float] = []
    for row in rows:
        mark = axes.transScale.transform((row["ms_per_image"], row["max_abs"]))
        wanted = axes.transLimits.transform(mark)[1]
        heights.append(max(wanted, heights[-1] + LEAST_SHARE if heights else 0.0))
    excess = max(0.0, heights[-1] - 0.98)
    for n in reversed(range(len(rows))):  # push down what stands above the top
        top = heights[n + 1] - LEAST_SHARE if n + 1 < len(rows) else heights[n] - excess
        heights[n] = min(heights[n], top)
    for row, height in zip(rows, heights, strict=True):
        axes.annotate(
            f"{row['name']}: {row['ms_per_image']:.3g} ms",
            (row["ms_per_image"], row["max_abs"]), (left, height),
            textcoords=axes.get_xaxis_transform(),  # x in data, y as a share of the height
            va="center", fontsize=FONT_SIZE - 2, color=INK,
            arrowprops={"arrowstyle": "-", "color": "#bbbbbb", "linewidth": 0.6,
                        "relpos": (0, 0.5)},
        )  # fmt: skip


def throughput_picture(figure: Figure, variants: Iterable[Results]) -> None:
    """Draw a panel of bars per variant and kind of use: longer is better."""
    panels = []
    for results in variants:
        for batch in dict.fromkeys(row["batch"] for row in results["sessions"]):
            rows = [row for row in results["sessions"] if row["batch"] == batch]
            panels.append((f"{results['variant']}, tensors, batch {batch}", rows))
        panels.append((f"{results['variant']}, folder of photographs", results["folders"]))
    panels = [(title, [r for r in rows if "images_per_s" in r]) for title, rows in panels]
    ratios = [BAR_INCHES * len(rows) + HEAD_INCHES for _, rows in panels]
    figure.set_size_inches(8.0, sum(ratios))
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=ratios)[:, 0]
    for axes, (title, rows) in zip(grid, panels, strict=True):
        rows = sorted(rows, key=lambda row: -row["images_per_s"])
        bars = axes.barh(
            range(len(rows)), [row["images_per_s"] for row in rows],
            color=[color_of(row["name"]) for row in rows],
        )  # fmt: skip
        axes.bar_label(bars, [f"{row['images_per_s']:.3g}" for row in rows], padding=3,
                       fontsize=FONT_SIZE - 1)  # fmt: skip
        style(axes, title)
        axes.grid(visible=False, axis="y")
        axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
        axes.invert_yaxis()
        axes.margins(x=0.1)
    grid[-1].set_xlabel("images per second", fontsize=FONT_SIZE)


def draw(variants: list[Results], folder: Path) -> list[Path]:
    """Draw both pictures and return their paths."""
    paths = []
    for name, plot in (("peers-latency.png", latency_picture),
                       ("peers-images.png", throughput_picture)):  # fmt: skip
        paths.append(folder / name)
        if problem := draw_picture(paths[-1], plot, variants):
            raise SystemExit(problem)
    return paths

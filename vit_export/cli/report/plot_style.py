"""Size, colours and file format that all pictures share."""

from __future__ import annotations

from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vit_export.artifact.publish import publish, staging

SIZE_INCHES = (8.0, 5.0)
DPI = 150
FONT_SIZE = 9
GRID = "#dddddd"
INK = "#333333"
# Okabe and Ito, "Color Universal Design" (2008), without yellow, which is faint on white:
# people with colour blindness can tell them apart
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
NO_CLOCK = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def style(axes: Axes, title: str = "") -> None:
    """Give axes the shared look: a title on the left, a faint grid, no frame at top and right."""
    axes.set_title(title, fontsize=FONT_SIZE, color=INK, loc="left", parse_math=False)
    axes.tick_params(labelsize=FONT_SIZE)
    axes.grid(visible=True, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: Path) -> None:
    """Write a picture atomically; the same picture gives the same bytes.

    Raises:
        OutputError: It cannot be written there.
    """
    with staging(path) as folder, rc_context({"svg.hashsalt": "vit-export"}):  # no random names
        file = folder / path.name
        figure.savefig(file, dpi=DPI, metadata=NO_CLOCK[path.suffix.lower()])
        publish([file], path.parent)

"""What all pictures have in common: size, colours that the colour-blind tell apart, lines."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from vit_export.artifact.publish import check_writable, publish, staging
from vit_export.errors import UsageError

SIZE_INCHES = (8.0, 5.0)
DPI = 150
FONT_SIZE = 9
GRID = "#dddddd"
INK = "#333333"
# Okabe and Ito, "Color Universal Design" (2008), without yellow, which is faint on white
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LOG_FROM_RATIO = 10  # largest / smallest value from which an axis is logarithmic
SUFFIXES = (".png", ".svg", ".pdf")
NO_CLOCK = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def check_suffix(path: Path) -> None:
    """Raise UsageError unless a picture of that name can be written."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"the picture {path} must end in {', '.join(SUFFIXES)}")


def check_picture_path(path: Path) -> None:
    """Find out before any work whether a picture can be drawn, and written there.

    Raises:
        UsageError: The name's ending is none that can be written.
        OutputError: No file can be made there.
    """
    check_suffix(path)
    check_writable(path)


def save(figure: Figure, path: Path) -> None:
    """Write a picture, whole or not at all.

    Raises:
        UsageError: The name's ending is none that can be written.
        OutputError: It cannot be written there.
    """
    check_suffix(path)
    with staging(path) as stage:
        figure.savefig(stage / path.name, dpi=DPI, metadata=NO_CLOCK[path.suffix.lower()])
        publish([stage / path.name], path.parent)

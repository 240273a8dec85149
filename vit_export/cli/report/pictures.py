"""Pictures: the checks before any work is done, the shared look, and the file.

matplotlib is imported when a picture is drawn.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_export.artifact.publish import check_writable, publish, staging
from vit_export.errors import OutputError, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE_INCHES = (8.0, 5.0)
DPI = 150
FONT_SIZE = 9
GRID = "#dddddd"
INK = "#333333"
# Okabe and Ito, "Color Universal Design" (2008), without yellow, which is faint on white:
# people with colour blindness can tell them apart
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
NO_CLOCK = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def check_picture(path: Path) -> None:
    """Raise UsageError or OutputError when no picture of that name can be drawn and written."""
    if path.suffix.lower() not in NO_CLOCK:
        raise UsageError(f"the picture {path} must end in .png, .svg or .pdf")
    check_matplotlib()
    check_writable(path)


def check_matplotlib() -> None:
    """Raise OutputError where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise OutputError(
            "cannot draw a picture: matplotlib is not installed",
            hint="pip install 'vit-export[bench]'",
        )


def draw_picture(path: Path, plot: Callable[..., None], *arguments: Any) -> str:
    """Draw a picture; return why there is none, empty when it was drawn: the result is kept.

    `plot` gets an empty figure and the arguments. The same picture gives the same bytes.
    """
    try:
        check_picture(path)
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        figure = Figure(figsize=SIZE_INCHES, layout="constrained")
        plot(figure, *arguments)
        with staging(path) as folder, rc_context({"svg.hashsalt": "vit-export"}):  # fixed ids
            file = folder / path.name
            figure.savefig(file, dpi=DPI, metadata=NO_CLOCK[path.suffix.lower()])
            publish([file], path.parent)
    except OutputError as error:
        return f"no picture: {error.message}{f' ({error.hint})' if error.hint else ''}"
    return ""


def style(axes: "Axes", title: str = "") -> None:
    """Give axes the shared look: a title on the left, a faint grid, no frame at top and right."""
    axes.set_title(title, fontsize=FONT_SIZE, color=INK, loc="left", parse_math=False)
    axes.tick_params(labelsize=FONT_SIZE)
    axes.grid(visible=True, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)

"""Check that a picture can be drawn, and draw it without losing the result it shows.

Imports no matplotlib: the modules that draw do.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from vit_export.artifact.publish import check_writable
from vit_export.errors import OutputError, UsageError

SUFFIXES = (".png", ".svg", ".pdf")


def check_picture(path: Path) -> None:
    """Check, before any work is done, that a picture can be drawn and written.

    Raises:
        UsageError: The name ends in no known suffix.
        OutputError: matplotlib is not installed, or no file can be made there.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"the picture {path} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        )
    check_matplotlib()
    check_writable(path)


def check_matplotlib() -> None:
    """Raise OutputError where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise OutputError(
            "cannot draw a picture: matplotlib is not installed",
            hint="pip install 'vit-export[bench]'",
        )


def draw_picture(path: Path, draw: Callable[[Path], None]) -> str:
    """Draw a picture; return why there is none, empty when it was drawn: the result is kept."""
    try:
        check_picture(path)
        draw(path)
    except (OutputError, UsageError) as error:
        return f"no picture: {error.message}{f' ({error.hint})' if error.hint else ''}"
    return ""

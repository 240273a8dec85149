"""Columns, pairs and numbers as people read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Columns under headers; numbers to the right."""
    cells = [[cell(value) for value in row] for row in rows]
    numeric = [
        all(_is_number(row[i]) for row in cells) and cells != [] for i in range(len(headers))
    ]
    widths = [max(len(row[i]) for row in [list(headers), *cells]) for i in range(len(headers))]

    def line(row: Sequence[str]) -> str:
        parts = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        )
        return "  ".join(parts).rstrip()

    return "\n".join([line(headers), line(["-" * width for width in widths]), *map(line, cells)])


def cell(value: Any) -> str:
    """A value as it stands in a table; `None` is a dash."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _is_number(text: str) -> bool:
    return (
        text == "-"
        or text.replace(".", "")
        .replace("-", "")
        .replace("e", "")
        .replace("+", "")
        .replace("%", "")
        .isdigit()
    )


def size(nbytes: int) -> str:
    """Bytes as people read them, e.g. `"346.3 MB"`."""
    for unit in ("B", "kB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes = nbytes / 1000  # type: ignore[assignment]
    return f"{nbytes:.2f} GB"


def pairs(rows: Sequence[tuple[str, str]]) -> str:
    """Names and texts in two columns."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {text}".rstrip() for name, text in rows)


def percent(share: float | None) -> str:
    """A share as people read it, e.g. `"98.9 %"`."""
    return "-" if share is None else f"{100 * share:.4g} %"

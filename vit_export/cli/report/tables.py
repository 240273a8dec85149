"""Tables and numbers as plain text."""

import io
import re
import sys
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

from rich.box import Box
from rich.console import Console, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

RULE_UNDER_HEADERS = Box("    \n    \n----\n    \n    \n    \n    \n    \n")
UNLIMITED = 100_000  # columns of text; a log file or a pipe has no width
NUMBER = re.compile(r"-|[-+]?([\d.]+(e[-+]?\d+)?|inf|nan)( %)?")


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return rows as columns under headers, with columns of numbers aligned to the right.

    Long words are folded to the width of the terminal, and are kept in one line elsewhere.
    """
    cells = [[cell(value) for value in row] for row in rows]
    grid = Table(box=RULE_UNDER_HEADERS, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for header, column in zip_longest(headers, zip(*cells, strict=True), fillvalue=()):
        numeric = bool(column) and all(NUMBER.fullmatch(text) for text in column)
        grid.add_column(
            str(header), justify="right" if numeric else "left", no_wrap=numeric, overflow="fold"
        )
    for row in cells:
        grid.add_row(*map(Text, row))
    return _plain_text(grid)


def pairs(rows: Sequence[tuple[str, str]]) -> str:
    """Return names and their texts in two columns."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in rows:
        grid.add_row(Text(name), Text(text))
    return _plain_text(grid)


def _plain_text(grid: RenderableType) -> str:
    width = None if sys.stdout.isatty() else UNLIMITED
    text = io.StringIO()
    Console(file=text, width=width, color_system=None).print(grid)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def cell(value: Any) -> str:
    """Return a value as a table shows it; `None` is a dash."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return "-" if value is None else str(value)


def size(nbytes: int) -> str:
    """Return a number of bytes in the largest fitting unit, e.g. `"346.3 MB"`."""
    return decimal(nbytes, precision=1 if nbytes < 1e9 else 2)

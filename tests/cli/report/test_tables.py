"""Tables and numbers as plain text."""

from __future__ import annotations

import io
import sys

import pytest

from vit_export.cli.report.tables import pairs, size, table


class Terminal(io.StringIO):
    """A stream that reports to be a terminal."""

    def isatty(self) -> bool:
        return True


def test_numbers_are_aligned_to_the_right_and_words_to_the_left():
    text = table(
        ("name", "n", "error", ""),
        [("blocks.0", 5, 1.25e-7, "x"), ("a", 12345, None, ""), ("b", 7, 0.5, "")],
    )
    assert text.splitlines() == [
        "name          n     error",
        "----------------------------",
        "blocks.0      5  1.25e-07  x",
        "a         12345         -",
        "b             7       0.5",
    ]


def test_wide_characters_take_two_columns():
    assert table(("name", "n"), [("猫", 1), ("ab", 2)]).splitlines()[2:] == ["猫    1", "ab    2"]


def test_a_table_without_rows_shows_its_headers():
    assert table(("a", "long"), []).splitlines()[0] == "a  long"


def test_brackets_are_no_markup():
    assert "[bold]x" in table(("[red]a",), [("[bold]x",)])
    assert "[bold]x" in pairs([("a", "[bold]x")])


def test_long_words_are_folded_on_a_narrow_terminal_and_nowhere_else(monkeypatch):
    rows = [("vit_base_patch16_224.int8-static.onnx", 12.5)]
    assert len(table(("candidate", "ms"), rows).splitlines()) == 3
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "20")
    lines = table(("candidate", "ms"), rows).splitlines()
    assert max(map(len, lines)) <= 20
    assert "12.5" in lines[2]
    assert "".join(line.split()[0] for line in lines[2:]) == rows[0][0]


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(999, "999 bytes"), (1000, "1.0 kB"), (346_300_000, "346.3 MB"), (2_530_000_000, "2.53 GB")],
)
def test_sizes_are_in_powers_of_ten(nbytes, text):
    assert size(nbytes) == text

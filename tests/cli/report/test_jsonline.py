"""Results as one line of JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from vit_export.cli.report.jsonline import to_json


@dataclass
class Point:
    """Something to print."""

    x: float
    where: Path
    rows: tuple[object, ...]


def test_json_is_one_line_that_strict_parsers_read():
    """NaN and infinity are null; tuples are lists; paths are text."""
    value = {
        "p": Point(float("nan"), Path("a/b"), (1, float("inf"), {2: -float("inf")})),
        "猫": True,
    }
    line = to_json(value)
    assert "\n" not in line

    def refuse(name: str) -> None:
        pytest.fail(f"{name} is no JSON")

    assert json.loads(line, parse_constant=refuse) == {
        "p": {"x": None, "where": "a/b", "rows": [1, None, {"2": None}]}, "猫": True,
    }  # fmt: skip


def test_a_whole_result_becomes_json(tiny_export):
    data = json.loads(to_json(tiny_export))
    assert data["path"] == str(tiny_export.path)
    (*_, last) = data["manifest"]["certificate"]
    assert last["passed"] is True
    assert last["hop"] == "onnx -> simplified"


def test_file_names_that_are_not_utf8_are_escaped():
    """Python stores such a byte as a surrogate."""
    line = to_json({"image": Path("caf\udce9.jpg"), "score": float("nan"), "猫": (1,)})
    assert line.isascii()
    assert json.loads(line) == {"image": "caf\udce9.jpg", "score": None, "猫": [1]}

"""Class names are read as people keep them, and never guessed."""

from __future__ import annotations

import json

import pytest

from vit_export.artifact.labels import check_labels, read_labels
from vit_export.errors import UsageError


@pytest.mark.parametrize(
    ("name", "text", "labels"),
    [
        ("l.txt", "cat\ndog\n", ("cat", "dog")),
        ("l.txt", "cat\r\ndog\r\n\r\n", ("cat", "dog")),
        ("l.txt", "  cat \n\ndog", ("cat", "", "dog")),
        ("l.txt", "\ufeffcat\ndog", ("cat", "dog")),
        ("labels", "tench, Tinca tinca\n猫\n", ("tench, Tinca tinca", "猫")),
        ("l.json", '["cat", "dog"]', ("cat", "dog")),
        ("l.json", "[1, 2]", ("1", "2")),
        ("l.json", '\ufeff["cat"]', ("cat",)),
        ("l.json", '{"1": "dog", "0": "cat"}', ("cat", "dog")),
        ("l.json", json.dumps({str(i): f"n{i}" for i in range(12)}),
         tuple(f"n{i}" for i in range(12))),
    ],
)  # fmt: skip
def test_names_are_read_in_the_order_of_the_classes(tmp_path, name, text, labels):
    """From lines, a list, or `id2label`; a byte order mark is no part of a name."""
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline="")
    assert read_labels(str(path)) == labels


@pytest.mark.parametrize(
    "text",
    ["", "{", '"cat"', "3", "null", "[]", "{}", '{"0": "cat", "2": "dog"}', '{"1": "dog"}',
     '{"cat": 0}'],
)  # fmt: skip
def test_json_of_another_kind_is_refused(tmp_path, text):
    """A gap in the numbers too."""
    path = tmp_path / "l.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"l\.json: expected a JSON list of names, or a mapping"):
        read_labels(path)


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_a_file_without_names_is_refused(tmp_path, text):
    """Rather than no labels."""
    path = tmp_path / "l.txt"
    path.write_text(text)
    with pytest.raises(UsageError, match="holds no labels"):
        read_labels(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    """Absent, a folder, or no text."""
    odd = tmp_path / "odd.txt"
    odd.write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "none.txt", tmp_path, odd):
        with pytest.raises(UsageError, match="cannot read the labels"):
            read_labels(path)


def test_one_label_per_class_or_none():
    """Both numbers are named."""
    check_labels((), 10)
    check_labels(("a", "b"), 2)
    with pytest.raises(UsageError, match="2 labels for a model of 10 classes"):
        check_labels(("a", "b"), 10)

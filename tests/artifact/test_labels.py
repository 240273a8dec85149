"""Class names are read as people keep them, and never guessed."""

from __future__ import annotations

import json
import os

import pytest

from vit_export.artifact.labels import check_labels, class_labels, read_labels
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
        ("l.json", '{"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"]}',
         ("tench", "goldfish")),
        ("l.json", '[["n01440764", "tench"], ["n01443537", "goldfish"]]', ("tench", "goldfish")),
        ("l.json", '[{"id": 1, "name": "dog"}, {"id": 0, "name": "cat"}]', ("cat", "dog")),
        ("l.json", '{"dog": 1, "cat": 0}', ("cat", "dog")),
        ("config.json", '{"model_type": "vit", "id2label": {"0": "cat", "1": "dog"}}',
         ("cat", "dog")),
        ("config.json", '{"model_type": "vit", "label2id": {"dog": 1, "cat": 0}}', ("cat", "dog")),
        ("l.json", json.dumps({str(i): f"n{i}" for i in range(12)}),
         tuple(f"n{i}" for i in range(12))),
    ],
)  # fmt: skip
def test_names_are_read_in_the_order_of_the_classes(tmp_path, name, text, labels):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline="")
    assert read_labels(str(path)) == labels


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ('"cat"', 'found "cat"'),
        ("3", "found 3"),
        ("null", "found null"),
        ("[]", r"found \[\]"),
        ("{}", "it holds no names"),
        ('{"0": "cat", "2": "dog"}', "2 names, but none for class 1"),
        ('{"1": "dog"}', "1 names, but none for class 0"),
        ('["tench", null]', "entry 1 is null, expected a name"),
        ('{"0": "tench", "1": null}', "key '1' is null, expected a name"),
        ('{"0": {"name": "tench"}}', "key '0' is "),
        ('{"0": "cat", "00": "dog"}', "class number 0 comes twice"),
        ('[{"id": 0, "name": "cat"}, {"id": 0, "name": "dog"}]', "class number 0 comes twice"),
        ('[{"id": 0}]', "the name of entry 0 is null"),
        ('[{"name": "cat"}]', "None is no class number"),
        ('{"model_type": "vit", "depth": 3}', "'model_type' is no class number"),
        ('{"id2label": ["cat"]}', r"found \[\"cat\"\]"),
        ('[["a", "b", "c"]]', "entry 0 is "),
    ],
)
def test_json_of_another_form_is_refused_with_the_entry(tmp_path, text, reason):
    path = tmp_path / "l.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=rf"l\.json: .*{reason}.*\nhint: expected one name per"):
        read_labels(path)


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_a_file_without_names_is_refused(tmp_path, text):
    path = tmp_path / "l.txt"
    path.write_text(text)
    with pytest.raises(UsageError, match="holds no labels"):
        read_labels(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    odd = tmp_path / "odd.txt"
    odd.write_bytes(b"\xff\xfe\x00")
    os.mkfifo(tmp_path / "pipe.txt")
    for name, reason in (
        ("none.txt", "no such file of labels"),
        (".", "is a folder, expected a file of labels"),
        ("pipe.txt", "is a pipe, socket or device, expected a file of labels"),
        ("odd.txt", "cannot be read as a file of labels"),
    ):
        with pytest.raises(UsageError, match=reason):
            read_labels(tmp_path / name)


def test_there_is_one_label_per_class_or_none():
    check_labels((), 10)
    check_labels(("a", "b"), 2)
    with pytest.raises(UsageError, match="2 labels for a model of 10 classes"):
        check_labels(("a", "b"), 10)


def test_names_that_a_caller_gives_are_read_like_a_file(tmp_path):
    """A mapping, a list, or the path of a file; an empty list is no names."""
    file = tmp_path / "l.txt"
    file.write_text("cat\ndog\n")
    expected = ("cat", "dog")
    for given in ({0: "cat", 1: "dog"}, {"1": "dog", "0": "cat"}, ["cat", "dog"], expected, file,
                  str(file), iter(expected)):  # fmt: skip
        assert class_labels(given) == expected
    assert class_labels([]) == ()


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({0: "cat", 2: "dog"}, "2 names, but none for class 1"),
        ({}, "it holds no names"),
        (["cat", None], "entry 1 is null, expected a name"),
        (["cat", 3], "entry 1 is 3, expected a name"),
        ([object], "entry 0 is <class 'object'>, expected a name"),
        ({"cat", "dog"}, "found {"),
        (3, "found 3"),
        (b"ab", "found b'ab'"),
        ("abcde", "abcde: no such file of labels"),
    ],
)
def test_other_things_that_a_caller_gives_are_refused(given, reason):
    with pytest.raises(UsageError, match=reason):
        class_labels(given)

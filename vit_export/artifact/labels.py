"""Class names, from a text file or from JSON."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from vit_export.artifact.open_file import read_text
from vit_export.errors import UsageError

Labels = str | os.PathLike[str] | Sequence[str] | Mapping[int, str] | Mapping[str, Any]
FORMS = (
    "one name per line; or JSON: a list of names, a mapping from class number to name (or to a "
    "list of identifier and name, as of ImageNet), a list of objects with id and name, or a "
    "config.json with id2label or label2id"
)


def read_labels(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read class names: one per line, or JSON in a file that ends in `.json`."""
    path = Path(path)
    text = read_text(path, what="file of labels", error=UsageError)
    if path.suffix.lower() == ".json":
        try:
            return parse_labels(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise UsageError(
                f"{path}: cannot be read as labels: {error}", hint=f"expected {FORMS}"
            ) from error
    if not (text := text.rstrip()):
        raise UsageError(f"{path}: holds no labels", hint=f"expected {FORMS}")
    return tuple(line.strip() for line in text.splitlines())


def class_labels(labels: Labels) -> tuple[str, ...]:
    """Return class names that a caller gives: a file, or names as `parse_labels` takes them."""
    if isinstance(labels, str | os.PathLike):
        return read_labels(labels)
    is_listed = isinstance(labels, Iterable) and not isinstance(labels, Mapping | Set | bytes)
    data: Any = list(labels) if is_listed else labels
    if is_listed and not data:
        return ()
    try:
        return parse_labels(data)
    except ValueError as error:
        raise UsageError(
            f"labels cannot be read: {error}",
            hint="pass a list of names, a mapping such as {0: 'cat', 1: 'dog'}, or the path of a "
            "file of labels",
        ) from error


def parse_labels(data: Any) -> tuple[str, ...]:
    """Return class names from parsed JSON, in any of `FORMS`; ValueError names a wrong entry."""
    if isinstance(data, Mapping):
        data = next((data[key] for key in ("id2label", "label2id") if data.get(key)), data)
        if not isinstance(data, Mapping):
            raise ValueError(f"found {_shown(data)}")
        if not all(map(_is_number, data)) and all(map(_is_number, data.values())):
            return _in_order((number, name) for name, number in data.items())
        return _in_order((key, _name(value, f"key {key!r}")) for key, value in data.items())
    if not isinstance(data, list) or not data:
        raise ValueError(f"found {_shown(data)}")
    if all(isinstance(entry, Mapping) for entry in data):
        return _in_order(
            (entry.get("id"), _name(entry.get("name"), f"the name of entry {i}"))
            for i, entry in enumerate(data)
        )
    if all(map(_is_number, data)):
        return tuple(map(str, data))
    return tuple(_name(value, f"entry {i}") for i, value in enumerate(data))


def _in_order(pairs: Iterable[tuple[Any, str]]) -> tuple[str, ...]:
    """Return names in the order of their class numbers, which must be 0, 1, 2, ..."""
    by_number: dict[int, str] = {}
    for number, name in pairs:
        if not _is_number(number):
            raise ValueError(f"{number!r} is no class number (name: {name!r})")
        if int(number) in by_number:
            raise ValueError(f"class number {int(number)} comes twice")
        by_number[int(number)] = name
    if not by_number:
        raise ValueError("it holds no names")
    if missing := set(range(len(by_number))) - by_number.keys():
        raise ValueError(f"{len(by_number)} names, but none for class {min(missing)}")
    return tuple(by_number[number] for number in sorted(by_number))


def _is_number(value: Any) -> bool:
    """Whether a value is a class number: an integer, or text of digits."""
    if isinstance(value, str):
        return value.isascii() and value.isdigit()
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _name(value: Any, where: str) -> str:
    """Return the name in an entry: text, or the second of two texts, as of ImageNet."""
    if isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value):
        value = value[1]
    if not isinstance(value, str):
        raise ValueError(f"{where} is {_shown(value)}, expected a name")
    return value


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except TypeError:  # a value that a caller gives, and that JSON has not
        text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def check_labels(labels: tuple[str, ...], num_classes: int) -> None:
    """Check that there is one label per class, or none at all."""
    if labels and len(labels) != num_classes:
        raise UsageError(f"{len(labels)} labels for a model of {num_classes} classes")

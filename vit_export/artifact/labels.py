"""Class names, as people keep them: a text file of lines, or JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path

from vit_export.errors import UsageError


def read_labels(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read class names.

    Args:
        path: One name a line, or JSON: a list, or a mapping from class number to name as in
            `id2label`.

    Raises:
        UsageError: The file cannot be read, or class numbers are missing.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors may write a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the labels {path}: {error}") from error
    if path.suffix == ".json":
        return _from_json(path, text)
    names = tuple(line.strip() for line in text.splitlines())
    while names and not names[-1]:
        names = names[:-1]
    if not names:
        raise UsageError(f"{path}: holds no labels; expected one name a line, or JSON")
    return names


def _from_json(path: Path, text: str) -> tuple[str, ...]:
    try:
        data = json.loads(text)
        if isinstance(data, dict):
            numbered = {int(number): str(name) for number, name in data.items()}
            data = [numbered[number] for number in range(len(numbered))]
        if not isinstance(data, list) or not data:
            raise TypeError(f"it is {text.strip()[:40]}")
        return tuple(str(name) for name in data)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path}: expected a JSON list of names, or a mapping from every class number "
            f"(0, 1, ...) to its name ({error!r})"
        ) from error


def check_labels(labels: tuple[str, ...], num_classes: int) -> None:
    """Refuse labels that are not one per class.

    Raises:
        UsageError: Naming both numbers.
    """
    if labels and len(labels) != num_classes:
        raise UsageError(f"{len(labels)} labels for a model of {num_classes} classes")

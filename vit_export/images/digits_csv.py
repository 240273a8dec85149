"""Digits in the CSV format of Kaggle's digit-recognizer competition.

A training file has the columns `label,pixel0,...,pixel783`, a test file has no `label`. Each row
is a square grey image, pixels row by row from 0 (black) to 255. Predictions are written as
`ImageId,Label`, counted from 1.
"""

import csv
import io
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vit_export.artifact.open_file import open_file
from vit_export.artifact.preprocess import Preprocess
from vit_export.errors import DataError, OutputError
from vit_export.images.dataset import LabelledImages, listed, spool
from vit_export.images.decode import Pixels
from vit_export.images.prepare import resize_and_crop
from vit_export.progress import Progress, silent

LABELS = tuple("0123456789")


def read_digits(
    path: Path, preprocess: Preprocess, labelled: bool | None = None, progress: Progress = silent
) -> LabelledImages:
    """Read a training file, or a test file, which gives no `labels`; images at the model's size.

    Without `labelled` the file may be of either kind.
    """
    header, rows = _read_rows(path, labelled)
    labels = LABELS if header[0] == "label" else ()
    targets, pixels = (rows[:, 0], rows[:, 1:]) if labels else (np.zeros_like(rows[:, 0]), rows)
    side = math.isqrt(pixels.shape[1])
    images = (resize_and_crop(image, preprocess) for image in pixels.reshape(-1, side, side, 1))
    return spool(images, targets, labels, progress)


def write_predictions(path: Path, predictions: NDArray[np.int64]) -> None:
    """Write the predicted classes (n,) of a test file: `ImageId,Label`."""
    lines = [f"{number},{label}" for number, label in enumerate(predictions, start=1)]
    try:
        path.write_text("\n".join(["ImageId,Label", *lines, ""]), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write the predictions to {path}: {error.strerror}") from error


def _read_rows(path: Path, labelled: bool | None) -> tuple[list[str], Pixels]:
    """Read the header and all rows, uint8 (n, columns); one error lists the bad ones."""
    rows: list[bytes] = []
    faults: list[str] = []
    try:
        with (
            open_file(path, what="CSV file", error=DataError) as stream,
            io.TextIOWrapper(stream, newline="", encoding="utf-8-sig") as text,
        ):
            reader = csv.reader(text)
            header = [name.strip() for name in next(reader, [])]
            _check_header(path, header, labelled)
            for cells in reader:
                if cells:
                    row, fault = _read_row(cells, header)
                    rows.append(row)
                    if fault:
                        faults.append(f"line {reader.line_num}: {fault}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path} as CSV text: {error}") from error
    if faults:
        raise DataError(
            f"cannot use {path}: {len(faults)} of {len(rows)} rows are bad{listed(faults)}",
            hint="correct or remove these lines",
        )
    if not rows:
        raise DataError(f"cannot use {path}: it has a header but no rows")
    return header, np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), len(header))


def _check_header(path: Path, names: list[str], labelled: bool | None) -> None:
    if labelled is None:
        labelled = names[:1] == ["label"]
    leading = ["label"] if labelled else []
    count = len(names) - len(leading)
    pixels = [f"pixel{index}" for index in range(count)]
    if names == leading + pixels and count > 0 and math.isqrt(count) ** 2 == count:
        return
    found = ",".join(names[:3]) + (f",... ({len(names)} columns)" if len(names) > 3 else "")
    expected = ",".join([*leading, "pixel0", "pixel1", "...", "pixel783"])
    hint = ""
    if labelled and names[:1] == ["pixel0"]:
        hint = "without labels it can be predicted, but not trained on"
    elif not labelled and names[:1] == ["label"]:
        hint = "it has labels, so it is a training file; predict the test file"
    raise DataError(
        f"cannot use {path}: its first line is {found!r}, expected {expected!r}, with as many "
        "pixels as a square image has",
        hint=hint,
    )


def _read_row(cells: Sequence[str], header: Sequence[str]) -> tuple[bytes, str]:
    """Return a row's numbers, one byte each, and its fault, or an empty string."""
    if len(cells) != len(header):
        return b"", f"{len(cells)} columns, expected {len(header)}"
    with suppress(ValueError):
        row = bytes(map(int, cells))
        if header[0] != "label" or row[0] < len(LABELS):
            return row, ""
    limits = [len(LABELS) - 1 if name == "label" else 255 for name in header]
    return b"", next(
        f"{name} is {cell[:20]!r}, expected an integer from 0 to {most}"
        for cell, name, most in zip(cells, header, limits, strict=True)
        if not re.fullmatch(r"\s*\d{1,3}\s*", cell) or int(cell) > most
    )

"""Write features of images to a file, in the form that its suffix names."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vit_export.artifact.publish import check_writable, publish, staging
from vit_export.errors import UsageError

Rows = NDArray[np.float32]


def check_embeddings_file(path: Path) -> None:
    """Raise before any work where a file cannot be written, or has a suffix of no known form."""
    if path.suffix.lower() not in FORMS:
        raise UsageError(
            f"--output {path}: expected a file that ends in {', '.join(FORMS)}",
            hint=".npz keeps names and numbers together",
        )
    check_writable(path)


def write_embeddings(path: Path, names: Sequence[str], rows: Rows) -> None:
    """Write one row per image, float32 (B, D); an existing file is replaced when all is written.

    `.npz` holds `names` and `vectors`, `.npy` the rows alone; `.csv` has a column per number, and
    `.jsonl` an object per image. All keep float32 exactly.
    """
    with staging(path) as folder:
        made = folder / path.name
        FORMS[path.suffix.lower()](made, names, rows)
        publish([made], path.parent)


def _write_npz(path: Path, names: Sequence[str], rows: Rows) -> None:
    with path.open("wb") as file:
        np.savez(file, names=np.array(names), vectors=rows)


def _write_npy(path: Path, _names: Sequence[str], rows: Rows) -> None:
    with path.open("wb") as file:
        np.save(file, rows)


def _write_csv(path: Path, names: Sequence[str], rows: Rows) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *(f"f{i}" for i in range(rows.shape[1]))])
        for name, row in zip(names, rows, strict=True):
            writer.writerow([name, *map(str, row)])


def _write_jsonl(path: Path, names: Sequence[str], rows: Rows) -> None:
    with path.open("w", encoding="utf-8") as file:
        for name, row in zip(names, rows, strict=True):
            file.write(json.dumps({"image": name, "features": row.tolist()}) + "\n")


FORMS: dict[str, Callable[[Path, Sequence[str], Rows], None]] = {
    ".npz": _write_npz,
    ".npy": _write_npy,
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
}

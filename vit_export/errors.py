"""Every error that a user can meet.

    VitExportError              exit status 1
    ├── UsageError              exit status 2: the request itself cannot be met
    │   ├── UnknownVariantError   no variant of that name
    │   └── ConfigError           an architecture that cannot be built
    ├── CheckpointError         a weights file cannot be read, or does not fit the model
    ├── DataError               training or calibration data cannot be used
    ├── ExportError             torch could not express the module as ONNX
    ├── SimplifyError           the simplifier failed
    ├── EngineError             TensorRT built no engine, or another than was asked for
    ├── ArtifactError           an .onnx, .npz or manifest is damaged, incomplete or foreign
    ├── BenchmarkError          a candidate of a benchmark crashed, or computes something else
    ├── GateError               an artifact computes something other than its torch model
    ├── ProviderError           what was asked to run the model is not what would run it
    ├── InputError              a tensor does not fit the model's input
    ├── ImageError              an image cannot be read or used
    └── OutputError             a result cannot be written where it was asked for

A message says what was done, what was found and what was expected, in that order; its hint says
what to do. Programming mistakes stay `TypeError` and `ValueError`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VitExportError(Exception):
    """Base of every error that this package raises on purpose.

    Attributes:
        message: What was done, what was found, and what was expected.
        hint: What to do about it; empty where the message says it all. `str(error)` ends with it,
            on a line of its own.
        exit_code: Exit status of a command that fails with this error.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class UsageError(VitExportError):
    """The request cannot be met, whatever the files hold."""

    exit_code = 2


class UnknownVariantError(UsageError):
    """No variant has this name; the message offers the nearest ones."""


class ConfigError(UsageError):
    """The architecture asked for cannot be built, e.g. a width not divisible by the heads."""


class CheckpointError(VitExportError):
    """A weights file cannot be read, or its tensors do not fit the model."""


class DataError(VitExportError):
    """Training or calibration data cannot be used."""


class ExportError(VitExportError):
    """torch could not express the module as an ONNX graph."""


class SimplifyError(VitExportError):
    """The simplifier failed; `--no-simplify` exports without it."""


class EngineError(VitExportError):
    """TensorRT could not build an engine, or built another than was asked for."""


class ArtifactError(VitExportError):
    """An artifact is damaged, incomplete, or lacks what vit-export writes into it."""


class BenchmarkError(VitExportError):
    """A candidate of a benchmark crashed, or does not compute what it is compared by."""


class GateError(VitExportError):
    """An artifact does not compute what its torch model computes."""


class ProviderError(VitExportError):
    """The execution provider asked for would not be the one that runs the model."""


class InputError(VitExportError):
    """A tensor given to a runner has the wrong name, dtype, shape or range."""


class ImageError(VitExportError):
    """An image file or array cannot be read or used."""


class OutputError(VitExportError):
    """A result cannot be written where it was asked for."""


def nearest(word: str, known: Iterable[str], *, most: int = 3) -> str:
    """Return a clause that offers the known words nearest to a mistyped one.

    Args:
        word: What was typed.
        known: The words that would have been understood.
        most: How many to offer at most.

    Returns:
        `"; did you mean 'a' or 'b'?"`, or an empty string when nothing comes near.
    """
    candidates = list(known)
    close = difflib.get_close_matches(word, candidates, n=most, cutoff=0.5)
    if not close:
        by_folded = {name.lower(): name for name in candidates}
        folded = difflib.get_close_matches(word.lower(), by_folded, n=most, cutoff=0.5)
        close = [by_folded[name] for name in folded]
    return f"; did you mean {' or '.join(repr(name) for name in close)}?" if close else ""

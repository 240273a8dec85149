"""Errors that vit-export raises on purpose; mistakes in code stay `TypeError` and `ValueError`."""

import difflib
from collections.abc import Collection, Iterable


class VitExportError(Exception):
    """Base of every error that this package raises on purpose.

    Attributes:
        message: What was done, what was found, and what was expected.
        hint: What to do about it; may be empty. `str(error)` ends with it, on its own line.
    """

    exit_code = 1  # exit status of a command that fails with this error

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class UsageError(VitExportError):
    """The request itself is wrong, whatever the files hold."""

    exit_code = 2


class UnknownVariantError(UsageError):
    """No variant has this name; the message suggests the nearest names."""


class ConfigError(UsageError):
    """The architecture cannot be built, e.g. a width not divisible by the number of heads."""


class CheckpointError(VitExportError):
    """A checkpoint cannot be read, or its tensors do not fit the model."""


class DataError(VitExportError):
    """Training or calibration data cannot be used."""


class ExportError(VitExportError):
    """torch could not export the module to an ONNX graph."""


class SimplifyError(VitExportError):
    """The simplifier failed; `--no-simplify` exports without it."""


class EngineError(VitExportError):
    """TensorRT could not build an engine, or built one of another precision."""


class ArtifactError(VitExportError):
    """An artifact, golden file or sidecar is damaged or incomplete."""


class GateError(VitExportError):
    """An artifact does not compute what its torch model computes."""


class ProviderError(VitExportError):
    """The requested execution provider cannot run the model, or would not run all of it."""


class ProviderWarning(UserWarning):
    """Something runs otherwise than one may expect: another provider, or without CUDA graphs."""


class InputError(VitExportError):
    """A tensor given to a runner has the wrong name, dtype, shape or range."""


class ImageError(VitExportError):
    """An image file or array cannot be read or used."""


class OutputError(VitExportError):
    """An output file cannot be written."""


def with_article(noun: str) -> str:
    """Return a noun behind its article: `"a list"`, `"an int"`."""
    return f"{'an' if noun.lower().startswith((*'aeiou', 'ndarray')) else 'a'} {noun}"


def check_known(what: str, value: str, known: Collection[str]) -> None:
    """Raise UsageError that names the nearest and all known values where a value is unknown."""
    if value not in known:
        others = f"{nearest(value, known)} (known: {', '.join(known)})"
        raise UsageError(f"unknown {what} {value!r}{others}")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'a' or 'b'?"` for a mistyped word; empty when none is near."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), by_lower, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(by_lower[name]) for name in near)}?" if near else ""

"""A model of another library with everything that its library says about it."""

import importlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from vit_export.artifact.manifest import Weights
from vit_export.artifact.preprocess import Preprocess
from vit_export.artifact.vocabulary import Activation
from vit_export.checkpoint.load import LoadReport
from vit_export.errors import CheckpointError
from vit_export.reference.outputs import describe_error


@dataclass(frozen=True, kw_only=True)
class LibraryModel:
    """A module in evaluation mode, float32, and how its library prepares images for it."""

    module: nn.Module
    compute: Callable[[Tensor], Mapping[str, Tensor]]  # images (B, C, H, W) to named outputs
    name: str  # of the model, and of the default output file
    preprocess: Preprocess
    weights: Weights
    labels: tuple[str, ...] = ()
    activation: Activation | None = None  # None: the outputs show it
    report: LoadReport | None = None  # where the weights are the user's file
    notes: tuple[str, ...] = ()


def import_library(name: str, *, needed_for: str) -> ModuleType:
    """Import `timm` or `transformers`; CheckpointError names the extra that installs it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise library_error(name, needed_for, error) from error
        raise CheckpointError(
            f"cannot load {needed_for}: the package {name} is not installed",
            hint=f"pip install 'vit-export[{name}]'",
        ) from error
    except (ImportError, RuntimeError) as error:  # e.g. a torchvision built for another torch
        raise library_error(name, needed_for, error) from error


def library_error(name: str, needed_for: str, error: Exception) -> CheckpointError:
    """Return the error of a library that cannot load a model, with its own words."""
    words = " ".join(describe_error(error).split())[:500]
    hint = ""
    if "torchvision::" in words or isinstance(error, ImportError):
        hint = (
            f"pip install 'vit-export[{name}]'; torch and torchvision must come from the same index"
        )
    return CheckpointError(f"{name} cannot load {needed_for}: {words}", hint=hint)


@contextmanager
def captured_logs(library: str) -> Iterator[list[str]]:
    """Collect what a library logs, instead of showing it."""
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, collector = logging.getLogger(library), Collector()
    before: tuple[Any, ...] = (logger.level, logger.propagate, logger.handlers)
    logger.setLevel(logging.INFO)
    logger.propagate, logger.handlers = False, [collector]
    try:
        yield lines
    finally:
        logger.setLevel(before[0])
        logger.propagate, logger.handlers = before[1:]

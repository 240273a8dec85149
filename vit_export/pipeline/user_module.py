"""Build a user's own `nn.Module` from `package.module:factory`."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator

import torch
from torch import nn

from vit_export.errors import UsageError, nearest, with_article
from vit_export.reference.outputs import describe_error


def build_module(spec: str, *, seed: int = 0) -> nn.Module:
    """Build a module from `package.module:factory`.

    Args:
        spec: Names a callable without arguments that returns a module, or a module. The package
            may lie in the current folder.
        seed: Seed of torch's random numbers while the factory runs.

    Raises:
        UsageError: It cannot be imported or called, or gives something else.
    """
    package, colon, name = spec.partition(":")
    if not (package and colon and name):
        raise UsageError(f"--module {spec}: expected package.module:factory")
    with _importing_from_current_folder():
        with _naming_errors(f"--module {spec}: cannot import {package}"):
            imported = importlib.import_module(package)
        if not hasattr(imported, name):
            close = nearest(name, vars(imported))
            raise UsageError(f"--module {spec}: {package} has no {name!r}{close}")
        made = getattr(imported, name)
        if callable(made) and not isinstance(made, nn.Module):
            torch.manual_seed(seed)
            with _naming_errors(f"--module {spec}: the factory failed"):
                made = made()
    if not isinstance(made, nn.Module):
        raise UsageError(
            f"--module {spec}: gives {with_article(type(made).__name__)}, expected an nn.Module "
            "or a function that returns one"
        )
    return made


@contextlib.contextmanager
def _naming_errors(problem: str) -> Iterator[None]:
    """Raise whatever the user's code raises as a UsageError."""
    try:
        yield
    except Exception as error:
        raise UsageError(f"{problem}: {describe_error(error)}") from error


@contextlib.contextmanager
def _importing_from_current_folder() -> Iterator[None]:
    """Search the current folder first, as `python -m` does, and last from then on.

    The module's forward can still import files of that folder, but later imports of libraries
    do not find a file such as `json.py` in it.
    """
    folder = os.getcwd()
    before = list(sys.path)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path[:] = before if folder in before else [*before, folder]

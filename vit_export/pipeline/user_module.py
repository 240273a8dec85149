"""Build a user's own `nn.Module` from `package.module:factory`."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from vit_export.errors import UsageError, nearest
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
        made = _attribute(spec, package, name)
        if not isinstance(made, nn.Module):
            if not callable(made):
                raise UsageError(f"--module {spec}: is a {type(made).__name__}, expected a factory")
            torch.manual_seed(seed)
            try:
                made = made()
            except Exception as error:  # whatever the user's code raises
                raise UsageError(
                    f"--module {spec}: the factory failed: {describe_error(error)}"
                ) from error
    if not isinstance(made, nn.Module):
        raise UsageError(f"--module {spec}: gave a {type(made).__name__}, expected an nn.Module")
    return made


def _attribute(spec: str, package: str, name: str) -> Any:
    try:
        imported = importlib.import_module(package)
    except Exception as error:  # whatever the user's code raises
        raise UsageError(
            f"--module {spec}: cannot import {package}: {describe_error(error)}"
        ) from error
    if not hasattr(imported, name):
        raise UsageError(
            f"--module {spec}: {package} has no {name!r}{nearest(name, vars(imported))}"
        )
    return getattr(imported, name)


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

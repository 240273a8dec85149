"""The least that a model needs to be run: an artifact's runner has it, and torch's too."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vit_export.artifact.manifest import Manifest, TensorSpec


class Runnable(Protocol):
    """Something that computes outputs from inputs; see `Runner` for what an artifact adds.

    Attributes:
        path: The artifact, or the one whose model it is.
        provider: What really runs it.
        inputs: What it takes.
        manifest: What the artifact says about itself; `None` in a file of another tool.
    """

    path: Path
    provider: str
    inputs: tuple[TensorSpec, ...]
    manifest: Manifest | None

    def run(self, feeds: Mapping[str, Any]) -> dict[str, NDArray[np.generic]]:
        """Compute every output from inputs by name; results lie in host memory."""
        ...


class Runner(Protocol):
    """Something that runs one artifact on one provider.

    Attributes:
        path: The artifact.
        provider: What really runs it: `"cpu"`, `"cuda"`, `"tensorrt"`.
        inputs: What it takes.
        outputs: What it gives.
        manifest: What vit-export wrote into it; `None` in a file of another tool.
    """

    path: Path
    provider: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    manifest: Manifest | None

    def run(self, feeds: Mapping[str, Any]) -> dict[str, NDArray[np.generic]]:
        """Compute every output from inputs by name."""
        ...

    def release(self) -> None:
        """Free what the backend holds; the next run takes it again."""
        ...

    def has_tensor(self, name: str) -> bool:
        """Whether the graph computes a tensor of that name."""
        ...

    def expose(self, names: Collection[str]) -> Runner:
        """A runner of the same artifact that gives inner tensors as well."""
        ...

"""Protocols that every runner implements, and how samples are cut into batches."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vit_export.artifact.manifest import Manifest, TensorSpec
from vit_export.artifact.preprocess import Preprocess

Outputs = dict[str, NDArray[np.generic]]


class Runnable(Protocol):
    """Computes outputs from inputs: an artifact's runner, or the torch model."""

    path: Path  # the artifact, or the one whose model it is
    provider: str  # what really runs it
    inputs: tuple[TensorSpec, ...]
    manifest: Manifest | None  # None in a file of another tool
    # smallest, usual and largest size of a dynamic batch; None where all are alike
    profile: tuple[int, int, int] | None

    def run(self, feeds: Mapping[str, Any]) -> Outputs:
        """Compute every output from inputs by name; results lie in host memory."""


class Runner(Runnable, Protocol):
    """Runs one artifact on one provider."""

    outputs: tuple[TensorSpec, ...]

    def run(self, feeds: Mapping[str, Any], *, preprocess: Preprocess | None = None) -> Outputs:
        """As `Runnable.run`; check that the first input has the range of images so normalised."""

    def release(self) -> None:
        """Free the memory of the backend; the next run loads the artifact again."""

    def has_tensor(self, name: str) -> bool:
        """Whether the graph computes a tensor of that name."""

    def expose(self, names: Collection[str]) -> Runner:
        """Return a runner of the same artifact that returns inner tensors as well."""


def batch_size(runner: Runnable, most: int) -> int:
    """Return the size to cut batches to: `most`, or the nearest size that the runner takes."""
    fixed = runner.inputs[0].fixed_batch
    if fixed is not None or runner.profile is None:
        return fixed or most
    smallest, _, largest = runner.profile
    return max(smallest, min(most, largest))


def batch_rows(samples: int, size: int) -> list[list[int]]:
    """Return the numbers of the samples in each batch; the first samples fill up the last batch."""
    starts = range(0, samples, size)
    return [[i % samples for i in range(start, start + size)] for start in starts]


def run_filled(runner: Runnable, feeds: Mapping[str, NDArray[Any]]) -> Outputs:
    """Run at most `batch_size` rows, filled up to the smallest batch that the runner takes.

    Unlike zeros, repeated rows leave the activation range of dynamic INT8 as it is.
    """
    given = len(next(iter(feeds.values())))
    size = batch_size(runner, 1)
    if size <= given:
        return runner.run(feeds)
    rows = batch_rows(given, size)[0]
    outputs = runner.run({name: array[rows] for name, array in feeds.items()})
    return {name: array[:given] for name, array in outputs.items()}

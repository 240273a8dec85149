"""How far a tensor is from what the oracle says it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_export.artifact.golden import Golden
from vit_export.errors import ArtifactError
from vit_export.gate.tolerances import Criterion

Array = NDArray[Any]
SINGLE_SHARE = 0.1  # of the spread over images, where an output is one number per image


@dataclass(frozen=True)
class Reference:
    """What one tensor should be.

    Attributes:
        values: float64 (S, K).
        indices: Elements of a flattened row that `values` keeps; `None` for all.
        own: Distance of torch's own arithmetic in the artifact's precision; infinite where it
            overflows, `None` where there is no such arithmetic.
        tolerance: Largest distance allowed; `None` where cosine decides.
        row_tolerance: How far a row may move with its neighbours; `None` where it may.
        min_cosine: Smallest cosine similarity allowed; `None` where distance decides alone.
    """

    values: NDArray[np.float64]
    indices: NDArray[np.int64] | None
    own: float | None
    tolerance: float | None
    row_tolerance: float | None
    min_cosine: float | None

    @property
    def largest(self) -> float:
        """`max|y64|`."""
        return float(np.abs(self.values).max(initial=0))

    def pick(self, output: Array) -> NDArray[np.float64]:
        """The elements of an output (B, ...) that can be compared, float64 (B, K)."""
        rows = output.reshape(len(output), -1)
        if self.indices is not None:
            if rows.shape[1] <= self.indices[-1]:
                return np.full((len(rows), 0), np.nan)
            rows = rows[:, self.indices]
        return rows.astype(np.float64)

    def accepts(self, distance: float, cosine: float) -> bool:
        """Whether a result at this distance and angle from the oracle is good enough."""
        near = self.tolerance is None or distance <= self.tolerance
        return bool(near and (self.min_cosine is None or cosine >= self.min_cosine))


def references(golden: Golden, criterion: Criterion) -> dict[str, Reference]:
    """Everything that a golden file knows, by tensor name.

    Raises:
        ArtifactError: The golden file does not know torch's distance in this precision.
    """
    baseline = criterion.baseline
    owns: Mapping[str, float] = getattr(golden, baseline) if baseline else {}
    if baseline and not set(golden.outputs) <= set(owns):
        raise ArtifactError(
            f"the golden file does not say how far {criterion.torch_name} is from the truth "
            f"({baseline}), which the gate for {criterion.precision} measures by: it is of an "
            "older version; export the fp32 model again"
        )
    known: dict[str, Reference] = {}
    if golden.blocks is not None:
        block_owns = getattr(golden.blocks, baseline) if baseline else ()
        for i, name in enumerate(golden.blocks.names):
            own = float(block_owns[i]) if i < len(block_owns) else None
            values, indices = golden.blocks.values[i], golden.blocks.indices[i]
            known[name] = _reference(criterion, own, values, indices)
    for name, output in golden.outputs.items():
        values = output.reshape(len(output), -1)
        known[name] = _reference(criterion, owns.get(name), values, None)
    return known


def _reference(
    criterion: Criterion,
    own: float | None,
    values: NDArray[np.float64],
    indices: NDArray[np.int64] | None,
) -> Reference:
    largest = float(np.abs(values).max(initial=0))
    tolerance = criterion.tolerance(own, largest)
    if tolerance is None and values.shape[1] == 1:  # one number has a sign, and no angle
        tolerance = SINGLE_SHARE * float(np.abs(values - values.mean(axis=0)).max())
    return Reference(
        values=values,
        indices=indices,
        own=own,
        tolerance=tolerance,
        row_tolerance=criterion.row_tolerance(own, largest),
        min_cosine=criterion.min_cosine,
    )


@dataclass
class Measured:
    """Running result of one output."""

    reference: Reference
    by_batch: dict[int, float] = field(default_factory=dict)
    cosine: dict[int, float] = field(default_factory=dict)
    rows: dict[int, NDArray[np.float64]] = field(default_factory=dict)  # first one seen
    row_max_abs: float = 0.0

    def add(self, batch: int, samples: Sequence[int], output: Array) -> str:
        """Take in one run's output; return what is wrong with it beyond distance."""
        if len(output) != len(samples):
            return (
                f"gives {len(output)} rows: the model fixes its batch size (--batch N exports that)"
            )
        found = self.reference.pick(output)
        expected = self.reference.values[list(samples)]
        if found.shape != expected.shape:
            return f"has shape {output.shape}, which is not that of the torch model"
        if not np.isfinite(output).all():
            count = int((~np.isfinite(output)).sum())
            self.by_batch[batch] = float("inf")
            self.cosine[batch] = float("nan")
            return f"holds {count} NaN or infinite values"
        distance = float(np.abs(found - expected).max())
        self.by_batch[batch] = max(self.by_batch.get(batch, 0.0), distance)
        self.cosine[batch] = min(self.cosine.get(batch, 1.0), cosine(found, expected))
        for sample, row in zip(samples, found, strict=True):
            first = self.rows.setdefault(sample, row)
            self.row_max_abs = max(self.row_max_abs, float(np.abs(row - first).max()))
        return ""


def cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Smallest cosine similarity between rows; two zero rows are alike."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    products = (a * b).sum(axis=1)
    alike = np.where((norms == 0) & (np.abs(a - b).max(axis=1) == 0), 1.0, 0.0)
    return float(np.where(norms > 0, products / np.where(norms > 0, norms, 1.0), alike).min())

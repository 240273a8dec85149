"""How far a tensor is from what the oracle says it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_export.golden import Golden

Array = NDArray[Any]


@dataclass(frozen=True)
class Reference:
    """What one tensor should be.

    Attributes:
        values: float64 (S, K).
        indices: Elements of a flattened row that `values` keeps; `None` for all.
        tolerance: Largest distance allowed.
        e32: torch's own distance.
    """

    values: NDArray[np.float64]
    indices: NDArray[np.int64] | None
    tolerance: float
    e32: float

    def pick(self, output: Array) -> NDArray[np.float64]:
        """The elements of an output (B, ...) that can be compared, float64 (B, K)."""
        rows = output.reshape(len(output), -1)
        if self.indices is not None:
            if rows.shape[1] <= self.indices[-1]:
                return np.full((len(rows), 0), np.nan)
            rows = rows[:, self.indices]
        return rows.astype(np.float64)


def fp32_tolerance(e32: float, largest: float) -> float:
    """No worse than what torch itself rounds: `max(4 * e32, 1e-6 * max|y64|)`."""
    return max(4 * e32, 1e-6 * largest)


def references(golden: Golden) -> dict[str, Reference]:
    """Everything that a golden file knows, by tensor name."""
    known: dict[str, Reference] = {}
    if golden.blocks is not None:
        for i, name in enumerate(golden.blocks.names):
            values, e32 = golden.blocks.values[i], float(golden.blocks.e32[i])
            tolerance = fp32_tolerance(e32, float(np.abs(values).max()))
            known[name] = Reference(values, golden.blocks.indices[i], tolerance, e32)
    for name, output in golden.outputs.items():
        e32 = golden.e32[name]
        tolerance = fp32_tolerance(e32, float(np.abs(output).max(initial=0)))
        known[name] = Reference(output.reshape(len(output), -1), None, tolerance, e32)
    return known


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
        self.cosine[batch] = min(self.cosine.get(batch, 1.0), _cosine(found, expected))
        for sample, row in zip(samples, found, strict=True):
            first = self.rows.setdefault(sample, row)
            self.row_max_abs = max(self.row_max_abs, float(np.abs(row - first).max()))
        return ""


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Smallest cosine similarity between rows; two zero rows are alike."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    products = (a * b).sum(axis=1)
    alike = np.where((norms == 0) & (np.abs(a - b).max(axis=1) == 0), 1.0, 0.0)
    return float(np.where(norms > 0, products / np.where(norms > 0, norms, 1.0), alike).min())

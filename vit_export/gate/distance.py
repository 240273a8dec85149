"""Distance of a tensor from its float64 reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_export.artifact.golden import Golden
from vit_export.errors import ArtifactError
from vit_export.gate.tolerances import Tolerances

Array = NDArray[Any]
SINGLE_SHARE = 0.1  # of the spread over images, where an output is one number per image


@dataclass(frozen=True)
class Reference:
    """What torch computes in float64 for one tensor, and how far an artifact may be from it."""

    values: NDArray[np.float64]  # (S, K)
    indices: NDArray[np.int64] | None  # of a flattened row, that `values` keeps; None for all
    own: float | None  # error of torch's own arithmetic in this precision; inf where it overflows
    tolerance: float | None  # largest distance allowed; None where distance does not decide
    row_tolerance: float | None  # how far a row may change with its neighbours; None: no limit
    min_cosine: float | None
    max_scale_error: float | None  # largest distance of the scale from 1

    @property
    def largest(self) -> float:
        """`max|y64|`."""
        return float(np.abs(self.values).max(initial=0))

    def limits(self, distance: float, cosine: float, scale: float) -> list[tuple[float, float]]:
        """Return each error with the largest one allowed, rows excluded."""
        pairs = [(distance, self.tolerance), (abs(scale - 1), self.max_scale_error)]
        if self.min_cosine is not None:
            pairs.append((1 - cosine, 1 - self.min_cosine))
        return [(error, allowed) for error, allowed in pairs if allowed is not None]

    def accepts(self, distance: float, cosine: float, scale: float) -> bool:
        """Whether a result is within every limit but that of its rows."""
        return all(error <= allowed for error, allowed in self.limits(distance, cosine, scale))


def references(golden: Golden, tolerances: Tolerances) -> dict[str, Reference]:
    """Return the reference of every block and output in a golden file, by name."""
    baseline = tolerances.baseline
    owns: Mapping[str, float] = getattr(golden, baseline) if baseline else {}
    if baseline and not set(golden.outputs) <= set(owns):
        raise ArtifactError(
            f"the golden file lacks {baseline}, the error of {tolerances.torch_name}, which the "
            f"tolerance of {tolerances.precision} depends on: an older release wrote it",
            hint="export the fp32 model again",
        )
    tensors: dict[str, tuple[NDArray[np.float64], NDArray[np.int64] | None, float | None]] = {}
    if golden.blocks is not None:
        block_owns = getattr(golden.blocks, baseline) if baseline else ()
        for i, name in enumerate(golden.blocks.names):
            own = float(block_owns[i]) if i < len(block_owns) else None
            tensors[name] = (golden.blocks.values[i], golden.blocks.indices[i], own)
    for name, output in golden.outputs.items():
        tensors[name] = (output.reshape(len(output), -1), None, owns.get(name))
    known: dict[str, Reference] = {}
    for name, (values, indices, own) in tensors.items():
        largest = float(np.abs(values).max(initial=0))
        tolerance, scale_error = tolerances.tolerance(own, largest), tolerances.max_scale_error
        if tolerance is None and values.shape[1] == 1:  # cosine is undefined for a single value
            spread = float(np.abs(values - values.mean(axis=0)).max())
            tolerance, scale_error = SINGLE_SHARE * spread, None
        row_tolerance = tolerances.row_tolerance(own, largest)
        known[name] = Reference(
            values, indices, own, tolerance, row_tolerance, tolerances.min_cosine, scale_error
        )
    return known


@dataclass
class Measured:
    """Distance of one output from its reference, over the batches added so far."""

    reference: Reference
    by_batch: dict[int, float] = field(default_factory=dict)  # largest distance, by batch size
    cosine: dict[int, float] = field(default_factory=dict)  # smallest one, by batch size
    rows: dict[int, NDArray[np.float64]] = field(default_factory=dict)  # first one of each sample
    row_max_abs: float = 0.0  # largest difference between two rows of one sample
    has_equal_rows: bool = False  # whether a sample has run more than once
    _product: float = 0.0  # sum of y * y64
    _square: float = 0.0  # sum of y64 * y64

    def add(self, samples: Sequence[int], output: Array) -> str:
        """Compare the output of one batch, and return why it cannot be compared, or nothing."""
        batch = len(samples)
        if len(output) != batch:
            return (
                f"gives {len(output)} rows: the model fixes its batch size (--batch N exports that)"
            )
        expected, kept = self.reference.values[list(samples)], self.reference.indices
        rows = output.reshape(batch, -1)
        if kept is not None:  # of a row that is too short, fewer are left
            rows = rows[:, kept[kept < rows.shape[1]]]
        if rows.shape != expected.shape:
            return f"has shape {output.shape}, which is not that of the torch model"
        picked = rows.astype(np.float64)
        if not np.isfinite(output).all():
            count = int((~np.isfinite(output)).sum())
            self.by_batch[batch] = float("inf")
            self.cosine[batch] = float("nan")
            return f"holds {count} NaN or infinite values"
        distance = float(np.abs(picked - expected).max())
        self.by_batch[batch] = max(self.by_batch.get(batch, 0.0), distance)
        self.cosine[batch] = min(self.cosine.get(batch, 1.0), cosine(picked, expected))
        self._product += float((picked * expected).sum())
        self._square += float((expected * expected).sum())
        for sample, row in zip(samples, picked, strict=True):
            self.has_equal_rows |= sample in self.rows
            first = self.rows.setdefault(sample, row)
            self.row_max_abs = max(self.row_max_abs, float(np.abs(row - first).max()))
        return ""

    @property
    def max_abs(self) -> float:
        """Largest distance; infinite where nothing could be compared."""
        return max(self.by_batch.values(), default=float("inf"))

    @property
    def min_cosine(self) -> float:
        """Smallest cosine similarity; 0 where nothing could be compared."""
        return min(self.cosine.values(), default=0.0)

    @property
    def scale(self) -> float:
        """Projection of the output on its reference: 1 where its scale is right."""
        return self._product / self._square if self._square else 1.0

    @property
    def accepted(self) -> bool:
        """Whether the output is within every limit but that of its rows."""
        return self.reference.accepts(self.max_abs, self.min_cosine, self.scale)

    @property
    def error_ratio(self) -> float:
        """Largest error as a multiple of what is allowed: up to 1 the output is within limits."""
        limits = self.reference.limits(self.max_abs, self.min_cosine, self.scale)
        if self.reference.row_tolerance is not None:
            limits.append((self.row_max_abs, self.reference.row_tolerance))
        return max([0.0, *(ratio(error, allowed) for error, allowed in limits)])


def ratio(error: float, allowed: float) -> float:
    """Return an error as a multiple of what is allowed; infinite where nothing is allowed."""
    return error / allowed if allowed else (0.0 if error <= 0 else float("inf"))


def cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the smallest cosine similarity between rows; that of two zero rows is 1."""
    return float(cosines(a, b).min())


def cosines(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cosine similarity of each row of `a` with that of `b`; of two zero rows 1."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    without_angle = (a == b).all(axis=1).astype(np.float64)
    found: NDArray[np.float64] = np.divide(
        (a * b).sum(axis=1), norms, out=without_angle, where=norms > 0
    )
    return found

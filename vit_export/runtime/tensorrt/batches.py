"""A batch of any size in batches that an engine serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vit_export.artifact.engine_sidecar import BatchRange


@dataclass(frozen=True)
class Chunk:
    """Rows of a batch that are run together.

    Attributes:
        start: First row.
        rows: Number of rows.
        batch: Batch size that the engine is given; what is beyond `rows` is zeros.
        profile: Index of the optimization profile.
    """

    start: int
    rows: int
    batch: int
    profile: int

    @property
    def padded(self) -> bool:
        """Whether there are more rows than images."""
        return self.batch > self.rows


def split(rows: int, profiles: Sequence[BatchRange]) -> list[Chunk]:
    """Cut a batch into pieces that the profiles serve.

    A batch that a profile serves stays whole, in the profile that is tuned for the nearest size.
    A larger one is cut into largest pieces; what is left, and a batch below every smallest one,
    is filled up to the next size that is served.

    Args:
        rows: Batch size, at least 1.
        profiles: Batch sizes that each profile serves.
    """
    largest = max(range(len(profiles)), key=lambda index: profiles[index].max)
    chunks, start = [], 0
    while rows - start > profiles[largest].max:
        size = profiles[largest].max
        chunks.append(Chunk(start, size, size, largest))
        start += size
    return [*chunks, _last(start, rows - start, profiles)]


def _last(start: int, rows: int, profiles: Sequence[BatchRange]) -> Chunk:
    serving = [i for i, ends in enumerate(profiles) if ends.min <= rows <= ends.max]
    if serving:
        best = min(serving, key=lambda index: abs(profiles[index].opt - rows))
        return Chunk(start, rows, rows, best)
    above = [index for index, ends in enumerate(profiles) if ends.min > rows]
    smallest = min(above, key=lambda index: profiles[index].min)
    return Chunk(start, rows, profiles[smallest].min, smallest)

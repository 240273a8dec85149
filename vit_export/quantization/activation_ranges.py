"""How large the tensors of a graph get: what calibration leaves beside an artifact.

A tensor's magnitudes are counted in 2048 bins from 0 to a power of two above the largest. When
a larger one comes, the range doubles and neighbouring bins join, without a loss: whichever way
the data is cut into batches, and in whatever order they come, the counts are the same.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_export.errors import ArtifactError, UsageError, nearest

BINS = 2048  # as TensorRT's entropy calibrator has them
LEVELS = 128  # magnitudes that INT8 tells apart
METHODS = ("percentile", "entropy", "max")
_UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile)


@dataclass(eq=False)
class TensorRange:
    """Statistics of one tensor.

    Attributes:
        channels: Largest magnitude per channel (last axis), float32 (C,).
        smallest: Smallest value.
        largest: Largest value.
        exponent: The bins reach from 0 to 2 ** exponent; every magnitude lies below.
        counts: Values per bin, int64 (2048,).
    """

    channels: NDArray[np.float32]
    smallest: float = math.inf
    largest: float = -math.inf
    exponent: int = -126  # of the smallest normal float32
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    @property
    def absmax(self) -> float:
        """Largest magnitude."""
        return float(self.channels.max(initial=0))

    @property
    def bin_width(self) -> float:
        """Width of a bin, a power of two."""
        return math.ldexp(1 / BINS, self.exponent)

    def add(self, values: NDArray[np.float32]) -> None:
        """Count values, float32 (..., C), all of them finite."""
        magnitudes = np.abs(values)
        per_channel = magnitudes.reshape(-1, values.shape[-1]).max(axis=0)
        np.maximum(self.channels, per_channel, out=self.channels)
        self.smallest = min(self.smallest, float(values.min()))
        self.largest = max(self.largest, float(values.max()))
        self._reach(math.frexp(float(per_channel.max()))[1] if per_channel.any() else -126)
        bins = np.ldexp(magnitudes.ravel(), -self.exponent) * np.float32(BINS)  # exact: by 2 ** n
        self.counts += np.bincount(bins.astype(np.int64), minlength=BINS)

    def _reach(self, exponent: int) -> None:
        """Double the range until it ends at 2 ** exponent."""
        for _ in range(exponent - self.exponent):
            if not self.counts.any():
                break
            joined = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([joined, np.zeros(BINS // 2, np.int64)])
        self.exponent = max(self.exponent, exponent)

    def percentile(self, share: float) -> float:
        """The magnitude that `share` percent of the values do not exceed, to a bin's width."""
        if share >= 100 or not self.counts.any():
            return self.absmax
        wanted = math.ceil(self.counts.sum() * share / 100)
        bins = int(np.searchsorted(np.cumsum(self.counts), wanted)) + 1
        return min(bins * self.bin_width, self.absmax)

    def entropy(self) -> float:
        """The magnitude to clip at that loses least information to INT8.

        It minimises the Kullback-Leibler divergence between the distribution clipped at a bin
        and the same in 128 levels, as TensorRT's calibrator does: Migacz, "8-bit Inference with
        TensorRT", GTC 2017. A clip is passed over where the levels give no probability to a bin
        that has some.
        """
        used = int(np.flatnonzero(self.counts)[-1]) + 1 if self.counts.any() else 0
        if used <= LEVELS:
            return self.absmax
        losses = [_divergence(self.counts, clip) for clip in range(LEVELS, used + 1)]
        return min((LEVELS + int(np.argmin(losses))) * self.bin_width, self.absmax)


def _divergence(counts: NDArray[np.int64], clip: int) -> float:
    """KL divergence in nats of `counts` clipped at a bin from the same in 128 levels."""
    kept = counts[:clip].astype(np.float64)
    edges = np.arange(LEVELS) * clip // LEVELS
    filled = kept > 0
    shares = np.add.reduceat(kept, edges) / np.maximum(np.add.reduceat(filled, edges), 1)
    coarse = np.repeat(shares, np.diff(edges, append=clip)) * filled
    kept[-1] += counts[clip:].sum()
    if kept[-1] and not coarse[-1]:
        return math.inf
    filled = kept > 0
    p, q = kept[filled] / kept.sum(), coarse[filled] / coarse.sum()
    return float((p * np.log(p / q)).sum())


@dataclass(frozen=True, eq=False)
class Ranges:
    """Statistics of the tensors that were watched.

    Attributes:
        tensors: By name.
        images: How many images they came from.
    """

    tensors: Mapping[str, TensorRange]
    images: int

    def threshold(
        self, tensor: str, method: str = "percentile", *, percentile: float = 99.99
    ) -> float:
        """The magnitude at which INT8 should clip a tensor.

        Args:
            tensor: Its name.
            method: `"percentile"`, `"entropy"` or `"max"`.
            percentile: Share of the values that are not clipped, in percent.

        Raises:
            UsageError: No such method, or a share outside of (0, 100].
            ArtifactError: The tensor was not watched.
        """
        if method not in METHODS:
            raise UsageError(
                f"unknown calibration method {method!r}{nearest(method, METHODS)} "
                f"(known: {', '.join(METHODS)})"
            )
        if not 0 < percentile <= 100:
            raise UsageError(f"percentile is {percentile}, expected more than 0, at most 100")
        if tensor not in self.tensors:
            raise ArtifactError(
                f"the ranges hold no tensor {tensor!r}; calibrate the artifact that they are for"
            )
        found = self.tensors[tensor]
        if method == "entropy":
            return found.entropy()
        return found.percentile(100 if method == "max" else percentile)

    def thresholds(
        self, method: str = "percentile", *, percentile: float = 99.99
    ) -> dict[str, float]:
        """`threshold` of every tensor, as `graph.qdq.to_int8_static` takes them."""
        return {t: self.threshold(t, method, percentile=percentile) for t in self.tensors}

    @property
    def channel_absmax(self) -> dict[str, NDArray[np.float32]]:
        """Largest magnitude per channel of every tensor, as `graph.smooth.smooth` takes them."""
        return {name: found.channels for name, found in self.tensors.items()}

    def write(self, path: Path) -> None:
        """Write a .npz file; the same statistics give the same bytes.

        It holds `images`, `names` (T,), `limits` float64 (T, 2) smallest and largest value,
        `exponents` (T,), `counts` int64 (T, 2048), and `channels.I` float32 (C,) of tensor I.
        """
        found = list(self.tensors.values())
        arrays: dict[str, Any] = {
            "images": np.int64(self.images),
            "names": np.array(list(self.tensors)),
            "limits": np.array([(t.smallest, t.largest) for t in found], np.float64),
            "exponents": np.array([t.exponent for t in found], np.int64),
            "counts": np.array([t.counts for t in found], np.int64),
            **{f"channels.{i}": t.channels for i, t in enumerate(found)},
        }
        with path.open("wb") as stream:
            np.savez_compressed(stream, **arrays)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Ranges:
        """Read what `write` wrote.

        Raises:
            ArtifactError: No such file, or not one of ranges.
        """
        path = Path(path)
        try:
            with path.open("rb") as stream:  # numpy leaves it open where it fails
                file = np.load(stream, allow_pickle=False)
                if isinstance(file, np.ndarray):
                    raise ValueError("it holds one array")
                arrays = {name: file[name] for name in file.files}
            return cls._from_arrays(arrays)
        except FileNotFoundError:
            raise ArtifactError(f"{path}: no such file of ranges; calibrate again") from None
        except (*_UNREADABLE, KeyError) as error:
            raise ArtifactError(
                f"{path}: not a file of ranges, or a damaged one ({error}); calibrate again"
            ) from error

    @classmethod
    def _from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Ranges:
        names, limits = arrays["names"], arrays["limits"]
        exponents, counts = arrays["exponents"], arrays["counts"]
        if limits.shape != (len(names), 2) or counts.shape != (len(names), BINS):
            raise ValueError(f"{len(names)} names, limits {limits.shape}, counts {counts.shape}")
        tensors = {
            str(name): TensorRange(
                channels=arrays[f"channels.{i}"],
                smallest=float(limits[i, 0]),
                largest=float(limits[i, 1]),
                exponent=int(exponents[i]),
                counts=counts[i],
            )
            for i, name in enumerate(names)
        }
        return cls(tensors=tensors, images=int(arrays["images"]))

"""Ranges of activations: statistics of tensors, and the file that keeps them.

The magnitudes of a tensor are counted in 2048 bins from 0 to a power of two above the largest.
When a larger magnitude comes, the range doubles and neighbouring bins are joined, without loss:
the counts do not depend on the order of the data or on how it is cut into batches.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_export.artifact.golden import read_arrays
from vit_export.errors import ArtifactError
from vit_export.quantization.settings import METHODS, PERCENTILE

BINS = 2048  # as in TensorRT's entropy calibrator
LEVELS = 128  # magnitudes that INT8 distinguishes


@dataclass(eq=False)
class TensorRange:
    """Statistics of one tensor."""

    # largest magnitude per channel (last axis), (C,)
    channels: NDArray[np.float32] = field(default_factory=lambda: np.zeros(1, np.float32))
    smallest: float = math.inf
    largest: float = -math.inf
    exponent: int = -126  # bins reach from 0 to 2 ** exponent; first the smallest normal float32
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))  # per bin

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
        self.channels = np.maximum(self.channels, per_channel)
        self.smallest = min(self.smallest, float(values.min()))
        self.largest = max(self.largest, float(values.max()))
        exponent = math.frexp(float(per_channel.max()))[1] if per_channel.any() else self.exponent
        while self.exponent < exponent and self.counts.any():  # double the range, join bins by two
            joined = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([joined, np.zeros(BINS // 2, np.int64)])
            self.exponent += 1
        self.exponent = max(self.exponent, exponent)
        bins = np.ldexp(magnitudes.ravel(), -self.exponent) * np.float32(BINS)  # exact: by 2 ** n
        self.counts += np.bincount(bins.astype(np.int64), minlength=BINS)

    def threshold(self, method: str = METHODS[0], *, percentile: float = PERCENTILE) -> float:
        """Return the magnitude at which INT8 should clip the tensor, by one of `METHODS`."""
        if method == "entropy":
            return self.entropy()
        return self.percentile(percentile) if method == "percentile" else self.absmax

    def percentile(self, share: float) -> float:
        """Return the magnitude that `share` percent of the values do not exceed, to one bin."""
        if share >= 100 or not self.counts.any():
            return self.absmax
        wanted = math.ceil(self.counts.sum() * share / 100)
        bins = int(np.searchsorted(np.cumsum(self.counts), wanted)) + 1
        return min(bins * self.bin_width, self.absmax)

    def entropy(self) -> float:
        """Return the clipping magnitude that loses the least information to INT8.

        It minimises the Kullback-Leibler divergence of the distribution in 128 levels from the
        distribution clipped at a bin, as TensorRT's calibrator does: Migacz, "8-bit Inference
        with TensorRT", GTC 2017.
        """
        used = int(np.flatnonzero(self.counts)[-1]) + 1 if self.counts.any() else 0
        if used <= LEVELS:
            return self.absmax
        losses = [_divergence(self.counts, clip) for clip in range(LEVELS, used + 1)]
        return min((LEVELS + int(np.argmin(losses))) * self.bin_width, self.absmax)


def _divergence(counts: NDArray[np.int64], clip: int) -> float:
    """Return the KL divergence in nats of `counts` clipped at a bin from the same in 128 levels.

    It is infinite where the levels give no probability to a bin that has some.
    """
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
    """Statistics of the calibrated tensors, by name."""

    tensors: Mapping[str, TensorRange]
    images: int  # that they were measured on

    def write(self, path: Path) -> None:
        """Write a .npz file; the same statistics give the same bytes.

        It holds `images`, `names` (T,), `limits` float64 (T, 2) smallest and largest value,
        `exponents` (T,), `counts` int64 (T, 2048), and `channels.I` float32 (C,) of tensor I.
        """
        ranges = list(self.tensors.values())
        arrays: dict[str, Any] = {
            "images": np.int64(self.images),
            "names": np.array(list(self.tensors)),
            "limits": np.array([(r.smallest, r.largest) for r in ranges], np.float64),
            "exponents": np.array([r.exponent for r in ranges], np.int64),
            "counts": np.array([r.counts for r in ranges], np.int64),
            **{f"channels.{i}": r.channels for i, r in enumerate(ranges)},
        }
        np.savez_compressed(path, **arrays)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Ranges":
        """Read a file of `write`; ArtifactError where there is none or it holds no ranges."""
        hint = "quantize the artifact again"
        arrays = read_arrays(path, what="file of activation ranges", hint=hint)
        try:
            names, limits = arrays["names"].tolist(), arrays["limits"].tolist()
            exponents, counts = arrays["exponents"].tolist(), arrays["counts"]
            if counts.shape != (len(names), BINS):
                raise ValueError(f"{len(names)} names, counts {counts.shape}")
            tensors = {}
            for i, (name, (low, high)) in enumerate(zip(names, limits, strict=True)):
                channels = arrays[f"channels.{i}"]
                tensors[name] = TensorRange(channels, low, high, exponents[i], counts[i])
            return cls(tensors=tensors, images=int(arrays["images"]))
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise ArtifactError(
                f"{path}: not a file of activation ranges, or damaged ({error})", hint=hint
            ) from error

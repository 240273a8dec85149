"""Split of a data set into images to train on and images held out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vit_export.errors import DataError


def stratified_split(
    targets: NDArray[np.int64], *, fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Hold out the same share of every class.

    Each class gives its share rounded down; the images still missing to the share of the whole
    come from the classes with the largest remainders. Every class keeps at least one image to
    train on.

    Args:
        targets: Class of each image, int64 (n,).
        fraction: Share to hold out, between 0 and 1.
        seed: Same seed, same split.

    Returns:
        Indices to train on and indices held out, each sorted.

    Raises:
        DataError: Too few images to hold out any.
    """
    classes, counts = np.unique(targets, return_counts=True)
    shares = fraction * counts
    held = np.minimum(np.floor(shares), counts - 1).astype(np.int64)
    missing = round(fraction * len(targets)) - int(held.sum())
    by_remainder = np.argsort(held - shares, kind="stable")
    can_give = (held < counts - 1) & (shares - held > 1e-9)
    open_classes = by_remainder[can_give[by_remainder]]
    held[open_classes[: max(missing, 0)]] += 1
    if not held.sum():
        raise DataError(
            f"cannot hold out {fraction:.0%} of {len(targets)} images in {len(classes)} classes "
            "for validation: no class has enough; add images or hold out a larger share"
        )
    rng = np.random.default_rng(seed)
    chosen = [
        rng.permutation(np.flatnonzero(targets == name))[:number]
        for name, number in zip(classes, held, strict=True)
    ]
    held_out = np.sort(np.concatenate(chosen))
    return np.setdiff1d(np.arange(len(targets)), held_out), held_out

"""Split a data set into training and validation images."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vit_export.errors import DataError
from vit_export.images.dataset import LabelledImages

Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Split:
    """Training and validation images: indices into two data sets, or into the same one."""

    train: LabelledImages
    train_rows: Indices
    validation: LabelledImages
    validation_rows: Indices

    @property
    def data_sets(self) -> tuple[LabelledImages, ...]:
        """The data sets without repetition."""
        same = self.validation is self.train
        return (self.train,) if same else (self.train, self.validation)


def split_data(
    train: LabelledImages, validation: LabelledImages | None, *, fraction: float, seed: int
) -> Split:
    """Validate on a data set of its own or, without one, on a share of the training images."""
    if validation is not None:
        rows, validation_rows = (np.arange(len(data.targets)) for data in (train, validation))
    else:
        rows, validation_rows = stratified_split(train.targets, fraction=fraction, seed=seed)
    return Split(
        train=train,
        train_rows=rows,
        validation=validation or train,
        validation_rows=validation_rows,
    )


def stratified_split(targets: Indices, *, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Choose the same share of every class at random: indices to train on, and held out, sorted.

    Each class gives its share rounded down; the images still missing to the share of the whole
    come from the classes with the largest remainders. Every class keeps at least one image to
    train on.
    """
    classes, counts = np.unique(targets, return_counts=True)
    shares = fraction * counts
    quotas = np.minimum(np.floor(shares), counts - 1).astype(np.int64)
    missing = round(fraction * len(targets)) - int(quotas.sum())
    by_remainder = np.argsort(quotas - shares, kind="stable")
    can_give = (quotas < counts - 1) & (shares - quotas > 1e-9)
    open_classes = by_remainder[can_give[by_remainder]]
    quotas[open_classes[: max(missing, 0)]] += 1
    if not quotas.sum():
        raise DataError(
            f"cannot hold out {fraction:.0%} of {len(targets)} images in {len(classes)} classes "
            "for validation: no class has enough images",
            hint="add images, or hold out a larger share with --validation-fraction",
        )
    rng = np.random.default_rng(seed)
    chosen = [
        rng.permutation(np.flatnonzero(targets == index))[:number]
        for index, number in zip(classes, quotas, strict=True)
    ]
    held_out = np.sort(np.concatenate(chosen))
    return np.setdiff1d(np.arange(len(targets)), held_out), held_out

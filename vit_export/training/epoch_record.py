"""Results of one epoch of training; needs the standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """Results of one epoch: means over the training images and over the validation images."""

    epoch: int  # counted from 1
    learning_rate: float  # of its last step
    train_loss: float
    train_accuracy: float  # share of augmented images, while the weights still change
    val_loss: float
    val_accuracy: float
    time_s: float


def best_of(history: Sequence[EpochRecord]) -> EpochRecord:
    """Return the first epoch with the most correct validation images and, of these, least loss."""
    return max(history, key=lambda record: (record.val_accuracy, -record.val_loss))

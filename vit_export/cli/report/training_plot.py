"""Learning curve of a training run as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vit_export.cli.report.plot_style import COLORS, FONT_SIZE, GRID, INK, save, style

if TYPE_CHECKING:  # it imports torch
    from vit_export.training.history import EpochRecord

SIZE_INCHES = (10.0, 4.2)
PARTS = {"train": "training", "val": "validation"}  # prefix of a field -> label


def training_plot(history: Sequence[EpochRecord], best: EpochRecord, path: Path) -> None:
    """Draw training and validation loss on the left, accuracies on the right, by epoch.

    Raises:
        OutputError: The file cannot be written.
    """
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    figure.suptitle(
        f"best epoch {best.epoch} of {len(history)}: "
        f"{best.val_accuracy:.2%} of the validation images correct",
        fontsize=FONT_SIZE + 2,
        color=INK,
    )
    epochs = [record.epoch for record in history]
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for (part, label), color in zip(PARTS.items(), COLORS, strict=False):
            values = [getattr(record, f"{part}_{quantity}") for record in history]
            axes.plot(epochs, values, color=color, label=label, marker="o", markersize=3)
        axes.axvline(best.epoch, color=GRID, linewidth=1.5, zorder=0)
        axes.set_xlabel("epoch", fontsize=FONT_SIZE)
        style(axes, quantity)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(fontsize=FONT_SIZE, frameon=False)
    save(figure, path)

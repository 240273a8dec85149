"""The learning curve of a training run."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.axes import Axes
from PIL import Image

from vit_export.cli.report import training_plot
from vit_export.training.history import EpochRecord


def record(epoch: int, train_loss: float, val_loss: float) -> EpochRecord:
    """An epoch with these losses, and accuracies of 1 minus them."""
    return EpochRecord(
        epoch=epoch,
        learning_rate=0.1,
        train_loss=train_loss,
        train_accuracy=1 - train_loss,
        val_loss=val_loss,
        val_accuracy=1 - val_loss,
        time_s=1.0,
    )


@pytest.mark.parametrize("epochs", [1, 3])
def test_losses_and_accuracies_are_drawn_by_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    """Loss on the left, accuracy on the right, training and validation in each."""
    drawn: list[Axes] = []

    def save(figure, path):
        drawn.extend(figure.axes)
        figure.savefig(path)

    monkeypatch.setattr(training_plot, "save", save)
    history = [record(epoch, 0.9 / epoch, 0.5 / epoch) for epoch in range(1, epochs + 1)]
    path = tmp_path / "curve.png"
    training_plot.training_plot(history, history[-1], path)
    lines = {
        (axes.get_title(loc="left"), line.get_label()): line.get_xydata().tolist()
        for axes in drawn
        for line in axes.lines
        if line.get_label() in ("training", "validation")
    }
    assert lines == {
        ("loss", "training"): [[r.epoch, r.train_loss] for r in history],
        ("loss", "validation"): [[r.epoch, r.val_loss] for r in history],
        ("accuracy", "training"): [[r.epoch, r.train_accuracy] for r in history],
        ("accuracy", "validation"): [[r.epoch, r.val_accuracy] for r in history],
    }
    with Image.open(path) as picture:
        assert picture.format == "PNG"

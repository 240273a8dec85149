"""The learning curve's picture."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vit_export.training.curve import HELD_OUT, PANELS_PX, SIZE_PX, TRAIN, draw_curve, nice_ticks
from vit_export.training.history import EpochRecord


def record(epoch: int, train: float, held_out: float) -> EpochRecord:
    """One epoch with these losses, and accuracies of 1 minus them."""
    return EpochRecord(
        epoch=epoch,
        learning_rate=0.1,
        train_loss=train,
        train_accuracy=1 - train,
        val_loss=held_out,
        val_accuracy=1 - held_out,
        time_s=1.0,
    )


def heights(picture: Image.Image, color: str, panel: tuple[int, int, int, int]) -> list[int]:
    """The rows of a panel that hold a colour, from its top."""
    wanted = tuple(int(color[start : start + 2], 16) for start in (1, 3, 5))
    inside = picture.crop(panel)
    return [
        y
        for y in range(inside.height)
        if any(inside.getpixel((x, y)) == wanted for x in range(inside.width))
    ]


def test_losses_and_accuracies_stand_where_their_values_are(tmp_path: Path) -> None:
    """Of two level lines the larger loss is higher on the left and its accuracy lower right."""
    path = tmp_path / "curve.png"
    draw_curve([record(epoch, 0.9, 0.1) for epoch in (1, 2, 3)], path)
    with Image.open(path) as picture:
        assert (picture.format, picture.size) == ("PNG", SIZE_PX)
        (loss, accuracy) = (
            [sum(rows) / len(rows) for rows in (heights(picture, c, p) for c in (TRAIN, HELD_OUT))]
            for p in PANELS_PX
        )
    height = PANELS_PX[0][3] - PANELS_PX[0][1]
    assert loss == pytest.approx([0.1 * height, 0.9 * height], abs=5)
    assert accuracy == pytest.approx([0.9 * height, 0.1 * height], abs=5)


@pytest.mark.parametrize("values", [(0.0, 0.0), (1.0, 1.0), (2.5, 2.5)])
def test_a_single_epoch_and_equal_values_are_drawn(
    tmp_path: Path, values: tuple[float, float]
) -> None:
    """A run of one epoch has no lines, only points."""
    draw_curve([record(1, *values)], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000


@given(
    low=st.floats(-1e6, 1e6, allow_subnormal=False),
    width=st.floats(1e-3, 1e6) | st.just(0.0),
)
def test_ticks_are_few_rise_evenly_and_enclose_the_values(low: float, width: float) -> None:
    """Two to eight of them."""
    ticks = nice_ticks(low, low + width)
    step = ticks[1] - ticks[0]
    assert 2 <= len(ticks) <= 8
    assert step > 0
    assert [b - a for a, b in pairwise(ticks)] == pytest.approx([step] * (len(ticks) - 1))
    assert ticks[0] <= low + 1e-6 * step
    assert ticks[-1] >= low + width - 1e-6 * step

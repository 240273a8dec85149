"""The learning curve of a run as a PNG: losses and accuracies by epoch, drawn with Pillow.

Drawn at twice the size and scaled down, which smooths the lines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from vit_export.training.history import EpochRecord, best_of

SIZE_PX = (1000, 420)
PANELS_PX = ((70, 70, 480, 365), (570, 70, 980, 365))  # left, top, right, bottom
OVERSAMPLING = 2
TICKS = 5  # about as many on an axis
INK, FAINT, TRAIN, HELD_OUT = "#222222", "#dddddd", "#1f77b4", "#d95f02"


def draw_curve(history: Sequence[EpochRecord], path: Path) -> None:
    """Draw training and validation loss on the left, accuracies on the right.

    Args:
        history: One record per epoch, at least one.
        path: The PNG to write.

    Raises:
        OSError: The file cannot be written.
    """
    canvas = _Canvas()
    best = best_of(history)
    score = f"{best.val_accuracy:.2%} of held-out images right"
    title = f"best epoch {best.epoch} of {len(history)}: {score}"
    canvas.text((SIZE_PX[0] / 2, 20), title, anchor="mm", size=17)
    for panel, quantity in zip(PANELS_PX, ("loss", "accuracy"), strict=True):
        lines = {
            ("training", TRAIN): [getattr(record, f"train_{quantity}") for record in history],
            ("validation", HELD_OUT): [getattr(record, f"val_{quantity}") for record in history],
        }
        _draw_panel(canvas, panel, quantity, lines, [record.epoch for record in history])
    canvas.save(path)


def nice_ticks(low: float, high: float) -> list[float]:
    """Round numbers, some `TICKS` of them, whose ends enclose `low` to `high`."""
    width = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(width / TICKS))
    step = next(power * unit for unit in (1, 2, 5, 10) if power * unit * TICKS >= width)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


class _Canvas:
    """A picture that is drawn in the pixels of the finished one."""

    def __init__(self) -> None:
        width, height = SIZE_PX
        self.image = Image.new("RGB", (width * OVERSAMPLING, height * OVERSAMPLING), "white")
        self.draw = ImageDraw.Draw(self.image)

    def text(
        self, at: tuple[float, float], words: str, *, anchor: str, size: int = 14, fill: str = INK
    ) -> None:
        font = ImageFont.load_default(size * OVERSAMPLING)
        self.draw.text(_larger(at), words, fill=fill, font=font, anchor=anchor)

    def line(self, points: Sequence[tuple[float, float]], *, fill: str, width: int = 1) -> None:
        larger = [_larger(point) for point in points]
        self.draw.line(larger, fill=fill, width=width * OVERSAMPLING, joint="curve")

    def dot(self, at: tuple[float, float], *, fill: str) -> None:
        self.draw.circle(_larger(at), 3 * OVERSAMPLING, fill=fill)

    def save(self, path: Path) -> None:
        self.image.resize(SIZE_PX, Image.Resampling.LANCZOS).save(path, format="PNG")


def _larger(point: tuple[float, float]) -> tuple[float, float]:
    return point[0] * OVERSAMPLING, point[1] * OVERSAMPLING


def _draw_panel(
    canvas: _Canvas,
    panel: tuple[int, int, int, int],
    title: str,
    lines: dict[tuple[str, str], list[float]],
    epochs: Sequence[int],
) -> None:
    left, top, right, bottom = panel
    values = [value for line in lines.values() for value in line]
    heights = nice_ticks(min(values), max(values))
    steps = [tick for tick in nice_ticks(0, epochs[-1]) if tick <= epochs[-1] and tick % 1 == 0]

    def place(epoch: float, value: float) -> tuple[float, float]:
        across = epoch / epochs[-1]
        up = (value - heights[0]) / (heights[-1] - heights[0])
        return left + across * (right - left), bottom - up * (bottom - top)

    for tick in heights:
        x, y = place(0, tick)
        canvas.line([(x, y), (right, y)], fill=FAINT)
        canvas.text((x - 8, y), f"{tick:.4g}", anchor="rm")
    for tick in steps:
        x, y = place(tick, heights[0])
        canvas.line([(x, y), (x, y + 5)], fill=INK)
        canvas.text((x, y + 9), f"{tick:.4g}", anchor="ma")
    canvas.line([(left, top), (left, bottom), (right, bottom)], fill=INK)
    canvas.text((left, top - 20), title, anchor="lm", size=16)
    canvas.text((right, bottom + 28), "epoch", anchor="ra")
    for number, ((name, color), line) in enumerate(lines.items()):
        points = [place(epoch, value) for epoch, value in zip(epochs, line, strict=True)]
        canvas.line(points, fill=color, width=2)
        canvas.dot(points[-1], fill=color)
        canvas.text((right - 90 * number, top - 20), name, anchor="rm", fill=color)

"""Latency against error, error per block and learning curves as pictures."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from vit_export.benchmark.run import Row
from vit_export.cli.report.pictures import draw_picture
from vit_export.cli.report.plots import latency_plot, trace_plot, training_plot
from vit_export.gate.trace import BlockError
from vit_export.training.history import EpochRecord


def row(name: str, ms: float | None, max_abs: float | None = 1e-6, **fields: object) -> Row:
    """A row of a benchmark."""
    values = {"provider": "cpu", "batch": 1, "median_ms": ms, "max_abs": max_abs} | fields
    return Row(name=name, **values)


ROWS = [
    row("vit.onnx", 83.14),
    row("vit.int8.onnx", 30.2, 0.31, accepted=False),
    row("vit.onnx", 5.5, batch=8),
    row("torch", None, None, error="other weights"),
    row("torch", None, None, batch=8, error="other weights"),
    row("other.onnx", 1234.5, None, notes=("distance not measured: no golden",)),
]


def marks(*rows: Row) -> tuple[Figure, list]:
    """The picture of rows, and its marks."""
    figure = Figure(layout="constrained")
    latency_plot(figure, rows, "")
    return figure, figure.axes[0].get_lines()


def test_marks_are_rows_with_a_time_and_a_distance():
    """One colour per candidate, one shape per batch size, hollow where the gate failed."""
    _, shown = marks(*ROWS)
    assert [(m.get_xdata()[0], m.get_ydata()[0]) for m in shown] == [
        (83.14, 1e-6), (30.2, 0.31), (5.5 / 8, 1e-6),
    ]  # fmt: skip
    assert [m.get_label() for m in shown] == [
        "1  vit.onnx, batch 1: 83.1 ms, 1e-06",
        "2  vit.int8.onnx, batch 1 (FAILED its gate): 30.2 ms, 0.31",
        "3  vit.onnx, batch 8: 0.688 ms, 1e-06",
    ]
    colors = [m.get_color() for m in shown]
    assert colors[0] == colors[2] != colors[1]
    shapes = [m.get_marker() for m in shown]
    assert shapes[0] == shapes[1] != shapes[2]
    hollow = [to_hex(m.get_markerfacecolor()) == "#ffffff" for m in shown]
    assert hollow == [False, True, False]
    _, two = marks(row("a", 1.0), row("a", 1.0, provider="cuda"))
    assert two[1].get_label().startswith("2  a on cuda: ")


def test_every_mark_is_numbered_and_named_with_its_values_below_the_axes():
    rows = [
        row(f"vit_base_patch16_224.{i}.int8-static.onnx", 30 + 0.2 * i, 1.25e-6, batch=batch)
        for i in range(8)
        for batch in (1, 8)
    ]
    figure, _ = marks(*rows)
    assert [text.get_text() for text in figure.axes[0].texts] == [str(n) for n in range(1, 17)]
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names[0] == "1  vit_base_patch16_224.0.int8-static.onnx, batch 1: 30 ms, 1.25e-06"
    assert len(set(names)) == 16
    figure.draw_without_rendering()
    box = legend.get_window_extent()
    assert figure.bbox.contains(box.x0, box.y0)
    assert figure.bbox.contains(box.x1, box.y1)
    assert box.y1 < figure.axes[0].get_window_extent().y0


@pytest.mark.parametrize(
    "rows", [ROWS, [row("exact", 1.0, 0.0)], [row("costs $5^.onnx", 1.0), row("$_$", 2.0)]]
)
def test_wide_ranges_exact_results_and_dollar_signs_are_drawn(rows, tmp_path):
    path = tmp_path / "out.png"
    assert draw_picture(path, latency_plot, rows, "A $CPU$") == ""
    with Image.open(path) as picture:
        assert min(picture.size) > 500
        pixels = np.asarray(picture.convert("RGB"), dtype=int)
    assert (pixels.max(axis=-1) - pixels.min(axis=-1) > 60).sum() > 100
    assert list(tmp_path.iterdir()) == [path]


def test_without_anything_to_show_an_earlier_picture_is_kept(tmp_path):
    path = tmp_path / "out.png"
    path.write_bytes(b"earlier")
    reason = draw_picture(path, latency_plot, ROWS[3:], "")
    assert reason == "no picture: no row has both a time and a distance"
    assert path.read_bytes() == b"earlier"


def test_blocks_are_bars_relative_to_their_tolerance():
    """Without a tolerance of every block they are shares of the largest value."""
    blocks = [
        BlockError(name="blocks.0", max_abs=1e-6, tolerance=1e-5, relative=0.125),
        BlockError(name="blocks.1", max_abs=float("inf"), tolerance=1e-5, relative=0.25),
    ]
    figure = Figure()
    trace_plot(figure, blocks, "title")
    (axes,) = figure.axes
    assert axes.get_xlabel() == "max|y - y64| / tolerance"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["blocks.0", "blocks.1"]
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["0.1", "NaN or infinite", "tolerance"]
    figure = Figure()
    trace_plot(figure, [BlockError(name="a", max_abs=1.0, tolerance=None, relative=0.25)], "t")
    assert figure.axes[0].get_xlabel() == "max|y - y64| / max|y64|"
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.25"]


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
def test_losses_and_accuracies_are_drawn_by_epoch(epochs):
    """Loss on the left, accuracy on the right, training and validation in each."""
    history = [record(epoch, 0.9 / epoch, 0.5 / epoch) for epoch in range(1, epochs + 1)]
    figure = Figure()
    training_plot(figure, history, history[-1])
    assert all(float(tick).is_integer() for axes in figure.axes for tick in axes.get_xticks())
    lines = {
        (axes.get_title(loc="left"), line.get_label()): line.get_xydata().tolist()
        for axes in figure.axes
        for line in axes.lines
        if line.get_label() in ("training", "validation")
    }
    assert lines == {
        ("loss", "training"): [[r.epoch, r.train_loss] for r in history],
        ("loss", "validation"): [[r.epoch, r.val_loss] for r in history],
        ("accuracy", "training"): [[r.epoch, r.train_accuracy] for r in history],
        ("accuracy", "validation"): [[r.epoch, r.val_accuracy] for r in history],
    }

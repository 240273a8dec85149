"""Latency against error as a picture."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vit_export.benchmark.run import Row
from vit_export.cli.report import latency_plot as module
from vit_export.cli.report.latency_plot import latency_plot, left_out, marks
from vit_export.errors import OutputError


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


def test_marks_are_rows_with_a_time_and_a_distance():
    """One colour per candidate, one shape per batch size; the other rows are listed."""
    shown = marks(ROWS)
    assert [(m.label, m.ms, m.max_abs) for m in shown] == [
        ("vit.onnx, batch 1", 83.14, 1e-6),
        ("vit.int8.onnx, batch 1 (FAILED its gate)", 30.2, 0.31),
        ("vit.onnx, batch 8", 5.5 / 8, 1e-6),
    ]
    assert shown[0].color == shown[2].color != shown[1].color
    assert shown[0].marker == shown[1].marker != shown[2].marker
    assert [m.failed for m in shown] == [False, True, False]
    assert left_out(ROWS) == [
        "torch on cpu, batch 1", "torch on cpu, batch 8", "other.onnx on cpu, batch 1",
    ]  # fmt: skip
    assert marks([row("a", 1.0), row("a", 1.0, provider="cuda")])[1].label == "a on cuda"


def test_every_mark_is_numbered_and_named_with_its_values_below_the_axes(tmp_path, monkeypatch):
    rows = [
        row(f"vit_base_patch16_224.{i}.int8-static.onnx", 30 + 0.2 * i, 1.25e-6, batch=batch)
        for i in range(8)
        for batch in (1, 8)
    ]
    figures = []
    monkeypatch.setattr(module, "save", lambda figure, path: figures.append(figure))
    latency_plot(rows, tmp_path / "out.png")
    (figure,) = figures
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
    latency_plot(rows, path, title="A $CPU$")
    with Image.open(path) as picture:
        assert min(picture.size) > 500
        pixels = np.asarray(picture.convert("RGB"), dtype=int)
    assert (pixels.max(axis=-1) - pixels.min(axis=-1) > 60).sum() > 100
    assert list(tmp_path.iterdir()) == [path]


def test_without_anything_to_show_an_earlier_picture_is_kept(tmp_path):
    path = tmp_path / "out.png"
    path.write_bytes(b"earlier")
    with pytest.raises(OutputError, match="no row has both"):
        latency_plot(ROWS[3:], path)
    assert path.read_bytes() == b"earlier"

"""A benchmark as a table, and as a picture."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from vit_export.benchmark.run import Row
from vit_export.cli.report import latency_plot
from vit_export.cli.report.benchmarks import benchmark
from vit_export.cli.report.latency_plot import draw, left_out, marks
from vit_export.cli.report.plot_style import check_suffix
from vit_export.errors import OutputError, UsageError
from vit_export.host.machine import Machine

MACHINE = Machine(
    processor="A CPU", cores=4, memory_bytes=16_000_000_000, load_average=0.1,
    system="Linux x86_64", gpus=("A GPU, 80 GiB",), versions={"python": "3.12.1"},
)  # fmt: skip


def row(name: str, ms: float | None, max_abs: float | None = 1e-6, **fields: object) -> Row:
    """A row that ran, or did not."""
    values = {"provider": "cpu", "batch": 1, "median_ms": ms, "max_abs": max_abs} | fields
    return Row(name=name, **values)


ROWS = [
    row("vit.onnx", 83.14, iqr_ms=0.5, images_per_s=12.03, speedup=1.0, load_s=0.61,
        peak_rss_bytes=431_000_000, file_bytes=346_300_000),
    row("vit.int8.onnx", 30.2, 0.31, iqr_ms=0.25, runs=67, images_per_s=33.1, speedup=2.753,
        accepted=False,
        notes=("outside its gate",)),
    row("vit.onnx", 5.5, batch=8),
    row("torch", None, None, error="other weights"),
    row("torch", None, None, batch=8, error="other weights"),
    row("other.onnx", 1234.5, None, notes=("distance not measured: no golden",)),
]  # fmt: skip


def test_the_first_line_is_the_machine_and_every_reason_is_said():
    """Numbers without exponents; a note once, whatever the number of batch sizes."""
    text = benchmark(MACHINE, 2, ROWS)
    lines = text.splitlines()
    for words in ("A CPU, 4 cores", "16.00 GB", "A GPU", "threads: 2", "python 3.12.1"):
        assert words in lines[0]
    (int8,) = (line.split() for line in lines if line.startswith("vit.int8.onnx  "))
    assert int8 == ["vit.int8.onnx", "cpu", "1", "30.2", "0.250", "67", "33.1", "2.75",
                    "-", "-", "-", "0.31", "FAILED"]  # fmt: skip
    assert " 1234 " in text or " 1235 " in text
    assert text.count("outside its gate") == 1
    assert text.count("NOT RUN: other weights") == 2
    assert "do not rely" not in text
    assert max(map(len, lines[1:])) <= 120


def test_a_busy_machine_is_said_to_be():
    """Before or after; its times are not the candidates' own."""
    busy = dataclasses.replace(MACHINE, load_average=9.0)
    assert "(processes on 4 cores: 9.0 before): do not rely" in benchmark(busy, None, ROWS)
    later = dataclasses.replace(MACHINE, others_after=3.0)
    assert "0.1 before, 3.0 at the end)" in benchmark(later, None, ROWS)
    assert "threads: default" in benchmark(busy, None, ROWS)


def test_marks_are_rows_with_a_time_and_a_distance():
    """The others are named, since nothing vanishes; one colour a candidate, one shape a batch."""
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


def test_labels_of_marks_that_lie_together_do_not_cover_each_other():
    """Each is read, and none covers a mark."""
    rows = [row(f"vit_base_patch16_{i}.onnx", 30 + 0.2 * i, 1e-6 + 1e-9 * i) for i in range(6)]
    figure = Figure(figsize=(8, 5))
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlim(0, 40)
    axes.set_ylim(0, 1.3e-6)
    canvas.draw()
    latency_plot._label(axes, canvas, marks(rows))
    assert [text.get_text() for text in axes.texts] == [r.name for r in rows]
    renderer = canvas.get_renderer()
    boxes = [latency_plot.text_box(text, renderer) for text in axes.texts]
    overlaps = [latency_plot._overlap(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :]]
    assert max(overlaps) == 0


def test_many_marks_are_numbered_and_named_below(tmp_path, monkeypatch):
    """Long names beside them would cover each other, and colours begin again."""
    rows = [
        row(
            f"vit_base_patch16_224.{i}.int8-static.onnx", 30 + 0.2 * i, 1e-6 + 1e-9 * i, batch=batch
        )
        for i in range(8)
        for batch in (1, 8)
    ]
    figures = []
    monkeypatch.setattr(latency_plot, "save", lambda figure, path: figures.append(figure))
    draw(rows, tmp_path / "out.png")
    (figure,) = figures
    assert [text.get_text() for text in figure.axes[0].texts] == [str(n) for n in range(1, 17)]
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names[0] == "1  vit_base_patch16_224.0.int8-static.onnx, batch 1"
    assert len(names) == len(set(names)) == 16
    box = legend.get_window_extent()
    assert figure.bbox.contains(box.x0, box.y0)
    assert figure.bbox.contains(box.x1, box.y1)
    assert box.y1 < figure.axes[0].get_window_extent().y0


@pytest.mark.parametrize(
    "rows",
    [ROWS, ROWS[:1], [row("exact", 1.0, 0.0)], [row("costs $5^.onnx", 1.0), row("$_$", 2.0)]],
)
def test_a_picture_is_drawn_of_whatever_there_is(rows, tmp_path):
    """Wide ranges, one mark, a distance of zero, which no logarithm has, and no formulas."""
    path = tmp_path / "out.png"
    draw(rows, path, subtitle="A CPU")
    with Image.open(path) as picture:
        assert min(picture.size) > 500
        pixels = np.asarray(picture.convert("RGB"), dtype=int)
    coloured = (pixels.max(axis=-1) - pixels.min(axis=-1) > 60).sum()
    assert coloured > 100
    assert list(tmp_path.iterdir()) == [path]


def test_a_picture_of_nothing_is_not_drawn(tmp_path):
    """One that was there stays."""
    path = tmp_path / "out.png"
    path.write_bytes(b"earlier")
    with pytest.raises(OutputError, match="no row has both"):
        draw(ROWS[3:], path)
    assert path.read_bytes() == b"earlier"


def test_a_picture_that_cannot_be_written_is_refused(tmp_path):
    """By its ending, or its place."""
    with pytest.raises(UsageError, match=r"must end in .png"):
        check_suffix(tmp_path / "out.jpeg")
    with pytest.raises(OutputError, match="no folder"):
        draw(ROWS, tmp_path / "none" / "out.png")

"""A benchmark as a table."""

from __future__ import annotations

import dataclasses

from vit_export.benchmark.run import Row
from vit_export.cli.report.machine import benchmark_text
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


def test_a_benchmark_shows_the_machine_each_row_and_every_reason():
    """Times without exponents; a note once, whatever the number of batch sizes."""
    text = benchmark_text(MACHINE, 2, ROWS)
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


def test_a_busy_machine_is_noted():
    busy = dataclasses.replace(MACHINE, load_average=9.0)
    assert "(processes on 4 cores: 9.0 before): do not rely" in benchmark_text(busy, None, ROWS)
    later = dataclasses.replace(MACHINE, others_after=3.0)
    assert "0.1 before, 3.0 at the end)" in benchmark_text(later, None, ROWS)
    assert "threads: default" in benchmark_text(busy, None, ROWS)

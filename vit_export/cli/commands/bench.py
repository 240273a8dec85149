"""`vit-export bench`: time artifacts side by side, and beside torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vit_export.cli.console import emit, progress_bar
from vit_export.cli.option_fields import command, option
from vit_export.cli.options import ProviderOptions, comma_separated
from vit_export.errors import UsageError

if TYPE_CHECKING:
    from vit_export.benchmark.run import Row

PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx")
SECONDS = click.FloatRange(min=0)


@dataclass(frozen=True, kw_only=True)
class BenchOptions(ProviderOptions):
    """Options of `bench`."""

    against: str = option(
        "Source", "torch, torch-compile: with the first artifact's weights.", "NAME,...", default=""
    )
    weights: str | None = option("Source", "The checkpoint, for --against.", "FILE")
    layout: str | None = option("Source", "Naming scheme of the checkpoint; recognised by default.")
    provider: str = option("Run", "cpu, cuda, tensorrt, or auto.", "NAME,...", default="auto")
    threads: int | None = option("Run", "CPU threads of one run.", type=click.IntRange(1))
    batch: str = option("Timing", "Images in one run.", "N,...", default="1")
    rounds: int = option("Timing", "Turns of each candidate.", default=10, type=click.IntRange(1))
    min_time: float = option(
        "Timing", "Seconds per candidate and batch.", default=2.0, type=SECONDS
    )
    warmup: float = option("Timing", "Seconds of untimed runs before.", default=0.5, type=SECONDS)
    timeout: float = option(
        "Timing", "Seconds to wait for an answer.", default=600.0, type=click.FloatRange(min=1)
    )
    plot: Path | None = option("Output", "Draw latency against error: .png, .svg or .pdf.", "FILE")


@command(BenchOptions)
@click.argument("artifacts", nargs=-1, required=True, metavar="ARTIFACT...")
def bench(artifacts: tuple[str, ...], options: BenchOptions, as_json: bool) -> None:
    """Time artifacts in turns, each in its own process.

    Shows latency, memory, size and error.
    """
    from vit_export.benchmark.candidates import plan
    from vit_export.benchmark.run import Timing, measure
    from vit_export.cli.report.benchmarks import benchmark_text, machine_line
    from vit_export.cli.report.pictures import check_picture, draw_picture
    from vit_export.host.machine import this_machine

    batches, threads, picture = _batches(options.batch), options.threads, options.plot
    if picture is not None:
        check_picture(picture)
    candidates = plan(
        artifacts,
        providers=comma_separated(options.provider),
        against=comma_separated(options.against),
        weights=options.weights,
        layout=options.layout,
        threads=threads,
        allow_host_code=options.trust_host_code,
    )
    machine = this_machine([*PACKAGES, *(["torch"] if options.against else [])])
    timing = Timing(rounds=options.rounds, min_time_s=options.min_time,
                    warmup_s=options.warmup, timeout_s=options.timeout)  # fmt: skip
    with progress_bar() as progress:
        rows = measure(candidates, batches, timing=timing, progress=progress)
    machine = machine.after(threads)
    text, failures = benchmark_text(machine, threads, rows), _failures(rows)
    if picture is not None:
        from vit_export.cli.report.latency_plot import latency_plot, left_out  # needs matplotlib

        title = machine_line(machine, threads)
        if problem := draw_picture(picture, lambda path: latency_plot(rows, path, title=title)):
            failures.append(problem)
        else:
            missing = [f"not in the picture: {name}" for name in left_out(rows)]
            text = "\n".join([text, *missing, f"picture: {picture}"])
    data = {"machine": machine, "busy": machine.busy, "threads": threads, "rows": rows}
    emit(as_json, data, text, failures=failures)


def _failures(rows: Sequence[Row]) -> list[str]:
    """Name the candidates that did not run, or compute something else than the first one."""
    failures = []
    for reason, chosen in (
        ("did not run", [row for row in rows if row.error]),
        ("outside its gate", [row for row in rows if row.accepted is False]),
    ):
        if names := dict.fromkeys(f"{row.name} on {row.provider}" for row in chosen):
            failures.append(f"{reason}: {', '.join(names)}")
    return failures


def _batches(text: str) -> list[int]:
    words = comma_separated(text)
    if not words or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise UsageError(f"--batch {text}: expected whole numbers from 1 on, e.g. --batch 1,8")
    return [int(word) for word in words]

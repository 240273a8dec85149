"""`vit-export bench`: time artifacts side by side, and beside torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vit_export.cli.console import emit, progress_bar
from vit_export.cli.option_fields import OUTPUT, RUN, SOURCE, TIMING, SectionCommand, option, takes
from vit_export.cli.options import ProviderOptions, comma_separated, json_option, path_of
from vit_export.errors import UsageError

if TYPE_CHECKING:
    from vit_export.benchmark.run import Row
    from vit_export.host.machine import Machine

PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx")
SECONDS = click.FloatRange(min=0)


@dataclass(frozen=True, kw_only=True)
class BenchOptions(ProviderOptions):
    """Options of `bench`."""

    against: str = option(
        SOURCE, "torch, torch-compile: with the first artifact's weights.", "NAME,...", default=""
    )
    weights: str | None = option(SOURCE, "The checkpoint, for --against.", "FILE")
    layout: str | None = option(SOURCE, "Naming scheme of the checkpoint; recognised by default.")
    provider: str = option(RUN, "cpu, cuda, tensorrt, or auto.", "NAME,...", default="auto")
    threads: int | None = option(RUN, "CPU threads of one run.", type=click.IntRange(1))
    batch: str = option(TIMING, "Images in one run.", "N,...", default="1")
    rounds: int = option(TIMING, "Turns of each candidate.", default=10, type=click.IntRange(1))
    min_time: float = option(TIMING, "Seconds per candidate and batch.", default=2.0, type=SECONDS)
    warmup: float = option(TIMING, "Seconds of untimed runs before.", default=0.5, type=SECONDS)
    timeout: float = option(
        TIMING, "Seconds to wait for an answer.", default=600.0, type=click.FloatRange(min=1)
    )
    plot: str | None = option(OUTPUT, "Draw latency against error: .png, .svg or .pdf.", "FILE")


@click.command(cls=SectionCommand)
@click.argument("artifacts", nargs=-1, required=True, metavar="ARTIFACT...")
@takes(BenchOptions)
@json_option
def bench(artifacts: tuple[str, ...], options: BenchOptions, as_json: bool) -> None:
    """Time artifacts in turns, each in its own process: latency, memory, size, error."""
    from vit_export.benchmark.candidates import plan
    from vit_export.benchmark.run import Timing, measure
    from vit_export.cli.report.benchmarks import benchmark_text
    from vit_export.cli.report.pictures import check_picture
    from vit_export.host.machine import this_machine

    batches, threads, picture = _batches(options.batch), options.threads, path_of(options.plot)
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
    timing = Timing(
        rounds=options.rounds,
        min_time_s=options.min_time,
        warmup_s=options.warmup,
        timeout_s=options.timeout,
    )
    with progress_bar() as progress:
        rows = measure(candidates, batches, timing=timing, progress=progress)
    machine = machine.after(threads)
    text, failures = benchmark_text(machine, threads, rows), _failures(rows)
    if picture is not None:
        lines, missing = _draw(rows, picture, machine, threads)
        text, failures = "\n".join([text, *lines]), [*failures, *missing]
    data = {"machine": machine, "busy": machine.busy, "threads": threads, "rows": rows}
    emit(as_json, data, text, failures=failures)


def _failures(rows: Sequence[Row]) -> list[str]:
    """Name the candidates that did not run, or compute something else than the first one."""

    def names(chosen: Iterable[Row]) -> str:
        return ", ".join(dict.fromkeys(f"{row.name} on {row.provider}" for row in chosen))

    by_reason = {
        "did not run": names(row for row in rows if row.error),
        "outside its gate": names(row for row in rows if row.accepted is False),
    }
    return [f"{reason}: {which}" for reason, which in by_reason.items() if which]


def _draw(
    rows: Sequence[Row], path: Path, machine: Machine, threads: int | None
) -> tuple[list[str], list[str]]:
    """Draw the picture; return lines about it, and failures: a failure keeps the rows."""
    from vit_export.cli.report.benchmarks import machine_line
    from vit_export.cli.report.latency_plot import latency_plot, left_out
    from vit_export.cli.report.pictures import draw_picture

    title = machine_line(machine, threads)
    problem = draw_picture(path, lambda path: latency_plot(rows, path, title=title))
    if problem:
        return [], [problem]
    return [*(f"not in the picture: {t}" for t in left_out(rows)), f"picture: {path}"], []


def _batches(text: str) -> list[int]:
    words = comma_separated(text)
    if not words or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise UsageError(f"--batch {text}: expected whole numbers from 1 on, e.g. --batch 1,8")
    return [int(word) for word in words]

"""`vit-export bench`: time artifacts side by side, and beside torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vit_export.cli.console import emit, progress_bar
from vit_export.cli.option_groups import GroupedCommand, option, option_group
from vit_export.cli.options import (
    OUTPUT,
    RUN,
    SOURCE,
    comma_separated,
    json_option,
    layout_option,
    path_of,
)
from vit_export.errors import UsageError

if TYPE_CHECKING:
    from vit_export.benchmark.candidates import Candidate
    from vit_export.benchmark.run import Row
    from vit_export.host.machine import Machine

TIMING = "Timing"
PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx")


@dataclass(frozen=True, kw_only=True)
class CandidateOptions:
    """What is timed beside the artifacts, and on what."""

    against: str
    weights: str | None
    layout: str | None
    provider: str
    threads: int | None
    trust_host_code: bool

    def candidates(self, artifacts: tuple[str, ...]) -> list[Candidate]:
        """Return one candidate per artifact or rival, and provider."""
        from vit_export.benchmark.candidates import plan

        return plan(
            artifacts,
            providers=comma_separated(self.provider),
            against=comma_separated(self.against),
            weights=self.weights,
            layout=self.layout,
            threads=self.threads,
            allow_host_code=self.trust_host_code,
        )


candidate_options = option_group(
    "compared", CandidateOptions,
    option("--against", group=SOURCE, default="", metavar="NAME,...",
           help="torch, torch-compile: with the weights of the first artifact."),
    option("--weights", group=SOURCE, metavar="FILE", help="The checkpoint, for --against."),
    layout_option,
    option("--provider", group=RUN, default="auto", show_default=True, metavar="NAME,...",
           help="cpu, cuda, tensorrt, or auto."),
    option("--threads", group=RUN, type=click.IntRange(min=1),
           help="CPU threads of one run; by default each backend's choice."),
    option("--trust-host-code", group=RUN, is_flag=True,
           help="Let a version-compatible engine run the code it contains."),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TimingOptions:
    """How long to time."""

    batch: str
    rounds: int
    min_time: float
    warmup: float
    timeout: float


timing_options = option_group(
    "timing", TimingOptions,
    option("--batch", group=TIMING, default="1", show_default=True, metavar="N,...",
           help="Images in one run."),
    option("--rounds", group=TIMING, default=10, show_default=True, type=click.IntRange(min=1),
           help="How often each candidate has its turn."),
    option("--min-time", group=TIMING, default=2.0, show_default=True,
           type=click.FloatRange(min=0), help="Seconds timed per candidate and batch."),
    option("--warmup", group=TIMING, default=0.5, show_default=True, type=click.FloatRange(min=0),
           help="Seconds of untimed runs before."),
    option("--timeout", group=TIMING, default=600.0, show_default=True,
           type=click.FloatRange(min=1),
           help="Seconds to wait for a candidate's answer before giving it up."),
)  # fmt: skip


@click.command(cls=GroupedCommand)
@click.argument("artifacts", nargs=-1, required=True, metavar="ARTIFACT...")
@candidate_options
@timing_options
@option("--plot", group=OUTPUT, metavar="FILE",
        help="Draw latency against error: .png, .svg or .pdf.")  # fmt: skip
@json_option
def bench(
    artifacts: tuple[str, ...],
    compared: CandidateOptions,
    timing: TimingOptions,
    plot: str | None,
    as_json: bool,
) -> None:
    """Time artifacts in turns, each in its own process: latency, memory, size, error."""
    from vit_export.benchmark.run import Timing, measure
    from vit_export.cli.report.benchmarks import benchmark_text
    from vit_export.cli.report.pictures import check_picture
    from vit_export.host.machine import this_machine

    batches, threads, picture = _batches(timing.batch), compared.threads, path_of(plot)
    if picture is not None:
        check_picture(picture)
    candidates = compared.candidates(artifacts)
    machine = this_machine([*PACKAGES, *(["torch"] if compared.against else [])])
    with progress_bar() as progress:
        rows = measure(
            candidates,
            batches,
            timing=Timing(
                rounds=timing.rounds,
                min_time_s=timing.min_time,
                warmup_s=timing.warmup,
                timeout_s=timing.timeout,
            ),
            progress=progress,
        )
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

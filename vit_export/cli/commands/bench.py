"""`vit-export bench`: time artifacts side by side, and beside torch."""

from dataclasses import dataclass
from pathlib import Path

import click

from vit_export.cli.console import ProgressBar, emit
from vit_export.cli.option_fields import command, option
from vit_export.cli.options import ProviderOptions, comma_separated
from vit_export.errors import UsageError

PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx")
SECONDS = click.FloatRange(min=0)


@dataclass(frozen=True, kw_only=True)
class _Options(ProviderOptions):
    against: str = option(
        "Source", "torch, torch-compile: with the first artifact's weights.", "NAME,...", default=""
    )
    weights: str | None = option("Source", "The checkpoint, for --against.", "FILE")
    layout: str | None = option("Source", "Naming scheme of the checkpoint; recognised by default.")
    provider: str = option(
        "Run", "Time on each: cpu, cuda, tensorrt, ..., or auto.", "NAME,...", default="auto"
    )
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


@command(_Options)
@click.argument("artifacts", nargs=-1, required=True, metavar="ARTIFACT...")
def bench(artifacts: tuple[str, ...], options: _Options, as_json: bool) -> None:
    """Time artifacts in turns, each in its own process.

    Shows latency, memory, size and error.
    """
    from vit_export.benchmark.candidates import plan
    from vit_export.benchmark.run import Timing, measure
    from vit_export.cli.report.machine import benchmark_text, machine_line
    from vit_export.cli.report.pictures import check_picture, draw_picture
    from vit_export.cli.report.plots import latency_plot
    from vit_export.host.machine import this_machine

    batches, threads, picture = _batches(options.batch), options.threads, options.plot
    if picture is not None:
        check_picture(picture)
    candidates = plan(
        artifacts,
        providers=options.providers(*artifacts),
        against=comma_separated(options.against),
        device=options.device,
        weights=options.weights,
        layout=options.layout,
        threads=threads,
        allow_host_code=options.trust_host_code,
    )
    machine = this_machine([*PACKAGES, *(["torch"] if options.against else [])])
    timing = Timing(rounds=options.rounds, min_time_s=options.min_time,
                    warmup_s=options.warmup, timeout_s=options.timeout)  # fmt: skip
    with ProgressBar() as progress:
        rows = measure(candidates, batches, timing=timing, progress=progress)
    machine = machine.after(threads)
    text, failures = benchmark_text(machine, threads, rows), []
    for reason, failed in (
        ("did not run", [row for row in rows if row.error]),
        ("outside its gate", [row for row in rows if row.accepted is False]),
    ):
        if names := dict.fromkeys(f"{row.name} on {row.provider}" for row in failed):
            failures.append(f"{reason}: {', '.join(names)}")
    if picture is not None:
        if problem := draw_picture(picture, latency_plot, rows, machine_line(machine, threads)):
            failures.append(problem)
        else:
            missing = [
                f"not in the picture: {row.name} on {row.provider}, batch {row.batch}"
                for row in rows
                if row.median_ms is None or row.max_abs is None
            ]
            text = "\n".join([text, *missing, f"picture: {picture}"])
    data = {"machine": machine, "busy": machine.busy, "threads": threads, "rows": rows}
    emit(as_json, data, text, failures=failures)


def _batches(text: str) -> list[int]:
    words = comma_separated(text)
    if not words or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise UsageError(f"--batch {text}: expected whole numbers from 1 on, e.g. --batch 1,8")
    return [int(word) for word in words]

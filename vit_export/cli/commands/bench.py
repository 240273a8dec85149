"""`vit-export bench`: artifacts side by side, and beside torch."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vit_export.cli.console import emit, progress_bar
from vit_export.cli.options import host_code_option, json_option, layout_option
from vit_export.errors import UsageError

if TYPE_CHECKING:
    from vit_export.benchmark.run import Row
    from vit_export.host.machine import Machine


@click.command()
@click.argument("artifacts", nargs=-1, required=True, metavar="ARTIFACT...")
@click.option("--batch", default="1", show_default=True, metavar="N,...", help="Images in a run.")
@click.option("--provider", default="auto", show_default=True, metavar="NAME,...",
              help="cpu, cuda, tensorrt, or auto.")  # fmt: skip
@click.option("--against", default="", metavar="NAME,...",
              help="torch, torch-compile: with the weights of the first artifact.")  # fmt: skip
@click.option("--weights", metavar="FILE", help="The checkpoint, for --against.")
@layout_option
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of a run; an "
              "engine has none.  [default: each backend's choice]")  # fmt: skip
@click.option("--rounds", default=10, show_default=True, type=click.IntRange(min=1),
              help="Turns of each candidate.")  # fmt: skip
@click.option("--min-time", default=2.0, show_default=True, type=click.FloatRange(min=0),
              help="Seconds timed for a candidate and batch.")  # fmt: skip
@click.option("--warmup", default=0.5, show_default=True, type=click.FloatRange(min=0),
              help="Seconds before, not counted.")  # fmt: skip
@click.option("--timeout", default=600.0, show_default=True, type=click.FloatRange(min=1),
              help="Seconds without an answer after which a candidate is given up.")  # fmt: skip
@click.option("--plot", metavar="FILE", help="Latency against error: .png, .svg or .pdf.")
@host_code_option
@json_option
def bench(artifacts: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Time artifacts, each in its own process, in turns: latency, memory, size, distance."""
    from vit_export.benchmark.candidates import plan
    from vit_export.benchmark.run import measure
    from vit_export.cli.report.benchmarks import benchmark_text
    from vit_export.cli.report.pictures import check_picture
    from vit_export.host.machine import this_machine

    batches, threads = _batches(options["batch"]), options["threads"]
    plot = Path(options["plot"]) if options["plot"] else None
    if plot is not None:
        check_picture(plot)
    candidates = plan(
        artifacts,
        providers=_words(options["provider"]),
        against=_words(options["against"]),
        weights=options["weights"],
        layout=options["layout"],
        threads=threads,
        allow_host_code=options["allow_host_code"],
    )
    packages = ["numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx"]
    machine = this_machine([*packages, "torch"] if options["against"] else packages)
    with progress_bar() as progress:
        rows = measure(
            candidates,
            batches,
            rounds=options["rounds"],
            min_time_s=options["min_time"],
            warmup_s=options["warmup"],
            timeout_s=options["timeout"],
            progress=progress,
        )
    machine = machine.after(threads)
    text = benchmark_text(machine, threads, rows)
    wrong = _failures(rows)
    if plot is not None:
        said, missing = _draw(rows, plot, machine, threads)
        text, wrong = f"{text}\n{said}" if said else text, [*wrong, *missing]
    data = {"machine": machine, "busy": machine.busy, "threads": threads, "rows": rows}
    if wrong:
        data["error"] = "; ".join(wrong)
    emit(as_json, data, text)
    if wrong:
        click.echo(f"Error: {data['error']}", err=True)
        sys.exit(1)


def _failures(rows: Sequence[Row]) -> list[str]:
    """What did not run, and what is not the model that it should be."""

    def names(chosen: Iterable[Row]) -> str:
        return ", ".join(dict.fromkeys(f"{row.name} on {row.provider}" for row in chosen))

    found = {
        "did not run": names(row for row in rows if row.error),
        "outside its gate": names(row for row in rows if row.accepted is False),
    }
    return [f"{what}: {which}" for what, which in found.items() if which]


def _draw(
    rows: Sequence[Row], path: Path, machine: Machine, threads: int | None
) -> tuple[str, list[str]]:
    """Draw the picture; return what to say of it, and what went wrong: the rows stay."""
    from vit_export.cli.report.benchmarks import machine_line
    from vit_export.cli.report.latency_plot import latency_plot, left_out
    from vit_export.cli.report.pictures import draw_picture

    title = machine_line(machine, threads)
    problem = draw_picture(path, lambda path: latency_plot(rows, path, title=title))
    if problem:
        return "", [problem]
    lines = [f"not in the picture: {title}" for title in left_out(rows)]
    return "\n".join([*lines, f"picture: {path}"]), []


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _batches(text: str) -> list[int]:
    words = _words(text)
    if not words or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise UsageError(f"--batch {text}: expected whole numbers from 1 on, e.g. --batch 1,8")
    return [int(word) for word in words]

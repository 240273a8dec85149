"""`vit-export bench`: artifacts side by side, and beside torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from vit_export.commands.options import host_code_option, json_option, layout_option
from vit_export.console import emit, progress_bar
from vit_export.errors import UsageError


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
@click.option("--plot", metavar="FILE", help="Latency against error: .png, .svg or .pdf.")
@host_code_option
@json_option
def bench(artifacts: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Time artifacts, each in its own process, in turns: latency, memory, size, distance."""
    from vit_export.benchmark import measure
    from vit_export.candidates import plan
    from vit_export.machine import this_machine
    from vit_export.report.benchmarks import benchmark, described

    batches, threads = _batches(options["batch"]), options["threads"]
    plot = Path(options["plot"]) if options["plot"] else None
    if plot is not None:
        _refuse_bad_picture(plot)
    candidates = plan(
        artifacts,
        providers=_words(options["provider"]),
        against=_words(options["against"]),
        weights=options["weights"],
        layout=options["layout"],
        threads=threads,
        host_code=options["host_code"],
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
            progress=progress,
        )
    text = benchmark(machine, threads, rows)
    if plot is not None:
        from vit_export.report.latency_plot import draw, left_out

        draw(rows, plot, subtitle=described(machine, threads))
        text += "".join(f"\nnot in the picture: {title}" for title in left_out(rows))
        text += f"\n{plot}"
    failed = list(dict.fromkeys(f"{row.name} on {row.provider}" for row in rows if row.error))
    data = {"machine": machine, "threads": threads, "rows": rows}
    if failed:
        data["error"] = f"did not run: {', '.join(failed)}"
    emit(as_json, data, text)
    if failed:
        click.echo(f"Error: {data['error']}", err=True)
        sys.exit(1)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _batches(text: str) -> list[int]:
    words = _words(text)
    if not words or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise UsageError(f"--batch {text}: expected whole numbers from 1 on, e.g. --batch 1,8")
    return [int(word) for word in words]


def _refuse_bad_picture(path: Path) -> None:
    """Find out before the measuring whether matplotlib is there, and the place can be written."""
    from vit_export.report.plot_style import check_suffix
    from vit_export.staging import refuse_impossible

    check_suffix(path)
    refuse_impossible(path)

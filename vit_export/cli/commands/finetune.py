"""`vit-export finetune`: data to a checkpoint."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vit_export.cli.console import emit, progress_bar, what_remains
from vit_export.cli.options import given, json_option, layout_option, overrides, path_of

if TYPE_CHECKING:
    from vit_export.training.loop import TrainingResult
    from vit_export.training.run import FinetuneSettings


@click.command()
@click.option("--variant", metavar="NAME", help="Optional with --weights.")
@click.option("--data", required=True, metavar="PATH",
              help="A folder per class, train/ and val/ with these, or a digits CSV.")  # fmt: skip
@click.option(
    "--weights", metavar="FILE", help="Start from this checkpoint instead of random weights."
)
@layout_option
@click.option(
    "--reset-head",
    is_flag=True,
    help="Replace the head with a zero-initialised one, for other classes.",
)
@click.option("--img-size", metavar="PX", help="e.g. 384, or 224x160 (height x width).")
@click.option("--set", "sets", multiple=True, metavar="FIELD=VALUE", help="Any other config field.")
@click.option("--epochs", type=int)
@click.option("--batch-size", type=int)
@click.option("--optimizer", type=click.Choice(["adamw", "adam"]))
@click.option("--learning-rate", type=float, help="Peak learning rate, after the warm-up.")
@click.option("--warmup-epochs", type=float)
@click.option("--weight-decay", type=float)
@click.option("--label-smoothing", type=float)
@click.option("--drop-path-rate", type=float, help="Stochastic depth of the last block.")
@click.option("--clip-grad-norm", type=float)
@click.option("--rotation-degrees", type=float, help="Largest random rotation.")
@click.option("--shift", type=float, help="Largest random shift, as a share of the side.")
@click.option(
    "--validation-fraction",
    type=float,
    help="Share of every class held out, where there is no val/ folder.",
)
@click.option("--patience", type=int, help="Stop after so many epochs without a better one.")
@click.option("--seed", type=int)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, or auto.")
@click.option("--resume", is_flag=True, help="Resume an interrupted run.")
@click.option("--predict", metavar="CSV", help="Classify this CSV, and write ImageId,Label.")
@click.option(
    "-o",
    "--output",
    metavar="PATH",
    help="By default ./<variant>.safetensors, or ./<weights>.finetuned.safetensors",
)
@json_option
def finetune(as_json: bool, **options: Any) -> None:
    """Train a variant, or a checkpoint, on labelled images."""
    import dataclasses

    from vit_export.cli.report.training import EpochLines, training_text
    from vit_export.training.history import TrainingFiles
    from vit_export.training.run import finetune as run

    settings = _settings(options)
    output = Path(options["output"]) if options["output"] else settings.default_output()
    files = TrainingFiles.beside(output)
    started = time.time()

    def remains() -> str:
        state = files.state
        if state.is_file() and (settings.resume or state.stat().st_mtime >= started):
            return f"{state} holds the finished epochs, resume with --resume"
        return "no epoch was finished, so nothing was saved"

    with what_remains(remains), progress_bar() as progress:
        result = run(
            Path(options["data"]),
            output,
            settings=settings,
            progress=progress,
            epochs_progress=EpochLines(progress),
        )
    training = result.training
    problem = _draw_curve(training)
    paths = {**dataclasses.asdict(files), "curve": None if problem else files.curve}
    data = {"files": paths, "best": training.best, "history": training.history,
            "stopped_early": training.stopped_early, "predictions": result.predictions,
            "report": result.report, "ignored": result.ignored}  # fmt: skip
    emit(as_json, data, training_text(result, no_curve=problem))


def _settings(options: dict[str, Any]) -> FinetuneSettings:
    import dataclasses

    from vit_export.training.recipe import Recipe
    from vit_export.training.run import FinetuneSettings

    names = [field.name for field in dataclasses.fields(Recipe)]
    return FinetuneSettings(
        variant=options["variant"],
        weights=options["weights"],
        layout=options["layout"],
        overrides=overrides(
            options["sets"], img_size=options["img_size"], drop_path_rate=options["drop_path_rate"]
        ),
        reset_head=options["reset_head"],
        recipe=Recipe(**given(**{name: options[name] for name in names})),
        device=options["device"],
        resume=options["resume"],
        predict=path_of(options["predict"]),
    )


def _draw_curve(training: TrainingResult) -> str:
    """Draw the learning curve; return why there is none."""
    from vit_export.cli.report.pictures import draw_picture

    def draw(path: Path) -> None:
        from vit_export.cli.report.training_plot import training_plot

        training_plot(training.history, path)

    return draw_picture(training.files.curve, draw)

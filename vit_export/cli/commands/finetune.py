"""`vit-export finetune`: data to a checkpoint."""

from __future__ import annotations

from typing import Any

import click

from vit_export.cli.console import emit, progress_bar, what_remains
from vit_export.cli.options import given, json_option, layout_option, overrides


@click.command()
@click.option("--variant", metavar="NAME", help="May be left out with --weights.")
@click.option("--data", required=True, metavar="PATH", help="Class folders, or a digits CSV.")
@click.option("--weights", metavar="FILE", help="Start from this checkpoint, not from random.")
@layout_option
@click.option("--reset-head", is_flag=True, help="A new, zero head for other classes.")
@click.option("--img-size", metavar="PX", help="e.g. 384, or 224x160 (height x width).")
@click.option("--set", "sets", multiple=True, metavar="FIELD=VALUE", help="Any other config field.")
@click.option("--epochs", type=int)
@click.option("--batch-size", type=int)
@click.option("--optimizer", type=click.Choice(["adamw", "adam"]))
@click.option("--learning-rate", type=float, help="The highest, after the warm-up.")
@click.option("--warmup-epochs", type=float)
@click.option("--weight-decay", type=float)
@click.option("--label-smoothing", type=float)
@click.option("--drop-path-rate", type=float, help="Stochastic depth of the last block.")
@click.option("--clip-grad-norm", type=float)
@click.option("--rotation-degrees", type=float, help="Largest random rotation.")
@click.option("--shift", type=float, help="Largest random shift, as a share of the side.")
@click.option("--validation-fraction", type=float, help="Share held out, stratified.")
@click.option("--patience", type=int, help="Stop after so many epochs without a better one.")
@click.option("--seed", type=int)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, or auto.")
@click.option("--resume", is_flag=True, help="Go on where a run with this output stopped.")
@click.option("--predict", "test", metavar="CSV", help="Write ImageId,Label for a test CSV.")
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
    from pathlib import Path

    from vit_export.cli.report.training import EpochLines, training_text
    from vit_export.training.history import TrainingFiles
    from vit_export.training.recipe import TrainingSettings
    from vit_export.training.run import Start, train

    wanted = {field.name for field in dataclasses.fields(TrainingSettings)}
    start = Start(
        variant=options["variant"],
        weights=options["weights"],
        layout=options["layout"],
        overrides=overrides(
            options["sets"], img_size=options["img_size"], drop_path_rate=options["drop_path_rate"]
        ),
        reset_head=options["reset_head"],
    )
    output = Path(options["output"]) if options["output"] else start.default_output()

    def remains() -> str:
        saved = TrainingFiles.beside(output).state.is_file()
        return "resume with --resume" if saved else "no epoch was finished, so nothing was saved"

    with what_remains(remains), progress_bar() as progress:
        trained = train(
            start,
            Path(options["data"]),
            output,
            settings=TrainingSettings(**given(**{n: options[n] for n in wanted})),
            device=options["device"],
            resume=options["resume"],
            test=Path(options["test"]) if options["test"] else None,
            progress=progress,
            epochs_progress=EpochLines(progress),
        )
    data = {"files": trained.result.files, "best": trained.result.best,
            "history": trained.result.history, "stopped_early": trained.result.stopped_early,
            "predictions": trained.predictions, "report": trained.report}  # fmt: skip
    emit(as_json, data, training_text(trained))

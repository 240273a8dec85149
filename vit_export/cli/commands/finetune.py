"""`vit-export finetune`: train a variant or a checkpoint on a data set."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vit_export.cli.console import emit, progress_bar, what_remains
from vit_export.cli.option_groups import GroupedCommand, option, option_group
from vit_export.cli.options import (
    OUTPUT,
    RUN,
    SOURCE,
    given,
    img_size_option,
    json_option,
    layout_option,
    overrides,
    path_of,
    reset_head_option,
    set_option,
)

if TYPE_CHECKING:
    from vit_export.training.loop import TrainingResult
    from vit_export.training.recipe import Recipe

RECIPE, AUGMENTATION = "Recipe", "Augmentation and regularisation"


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """What to train."""

    variant: str | None
    weights: str | None
    layout: str | None
    reset_head: bool
    img_size: str | None
    sets: tuple[str, ...]


start_options = option_group(
    "start", StartOptions,
    option("--variant", group=SOURCE, metavar="NAME", help="Optional with --weights."),
    option("--weights", group=SOURCE, metavar="FILE",
           help="Start from this checkpoint instead of random weights."),
    layout_option,
    reset_head_option,
    img_size_option,
    set_option,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """Hyperparameters; `None` where an option was not given."""

    epochs: int | None
    batch_size: int | None
    optimizer: str | None
    learning_rate: float | None
    warmup_epochs: float | None
    weight_decay: float | None
    clip_grad_norm: float | None
    validation_fraction: float | None
    patience: int | None
    seed: int | None
    label_smoothing: float | None
    rotation_degrees: float | None
    shift: float | None

    def recipe(self) -> Recipe:
        """Return the recipe with the options that were given."""
        from vit_export.training.recipe import Recipe

        return Recipe(**given(**vars(self)))


recipe_options = option_group(
    "hyperparameters", RecipeOptions,
    option("--epochs", group=RECIPE, type=int),
    option("--batch-size", group=RECIPE, type=int),
    option("--optimizer", group=RECIPE, type=click.Choice(["adamw", "adam"])),
    option("--learning-rate", group=RECIPE, type=float,
           help="Peak learning rate, after the warm-up."),
    option("--warmup-epochs", group=RECIPE, type=float),
    option("--weight-decay", group=RECIPE, type=float),
    option("--clip-grad-norm", group=RECIPE, type=float),
    option("--validation-fraction", group=RECIPE, type=float,
           help="Share of every class held out, where there is no val/ folder."),
    option("--patience", group=RECIPE, type=int,
           help="Stop after this many epochs without a better one."),
    option("--seed", group=RECIPE, type=int),
    option("--label-smoothing", group=AUGMENTATION, type=float),
    option("--rotation-degrees", group=AUGMENTATION, type=float, help="Largest random rotation."),
    option("--shift", group=AUGMENTATION, type=float,
           help="Largest random shift, as a share of the side."),
)  # fmt: skip


@click.command(cls=GroupedCommand)
@option("--data", group=SOURCE, required=True, metavar="PATH",
        help="A folder per class, train/ and val/ with these, or a digits CSV.")  # fmt: skip
@start_options
@recipe_options
@option("--drop-path-rate", group=AUGMENTATION, type=float,
        help="Stochastic depth of the last block.")  # fmt: skip
@option("--device", group=RUN, default="auto", show_default=True, help="cpu, cuda, or auto.")
@option("--resume", group=RUN, is_flag=True, help="Resume an interrupted run.")
@option("--predict", group=OUTPUT, metavar="CSV",
        help="Classify this CSV, and write ImageId,Label.")  # fmt: skip
@option("-o", "--output", group=OUTPUT, metavar="PATH",
        help="By default ./<variant>.safetensors, or ./<weights>.finetuned.safetensors",
)  # fmt: skip
@json_option
def finetune(
    data: str,
    start: StartOptions,
    hyperparameters: RecipeOptions,
    drop_path_rate: float | None,
    device: str,
    resume: bool,
    predict: str | None,
    output: str | None,
    as_json: bool,
) -> None:
    """Train a variant, or a checkpoint, on labelled images."""
    from vit_export.cli.report.training import EpochLines, training_text
    from vit_export.training.history import TrainingFiles
    from vit_export.training.run import FinetuneSettings
    from vit_export.training.run import finetune as train

    changes = overrides(start.sets, img_size=start.img_size, drop_path_rate=drop_path_rate)
    settings = FinetuneSettings(
        variant=start.variant,
        weights=start.weights,
        layout=start.layout,
        overrides=changes,
        reset_head=start.reset_head,
        recipe=hyperparameters.recipe(),
        device=device,
        resume=resume,
        predict=path_of(predict),
    )
    path = path_of(output) or settings.default_output()
    files, started = TrainingFiles.beside(path), time.time()

    def remains() -> str:
        state = files.state
        if state.is_file() and (resume or state.stat().st_mtime >= started):
            return f"{state} holds the finished epochs, resume with --resume"
        return "no epoch was finished, so nothing was saved"

    with what_remains(remains), progress_bar() as progress:
        result = train(
            Path(data),
            path,
            settings=settings,
            progress=progress,
            epochs_progress=EpochLines(progress),
        )
    training = result.training
    problem = _draw_curve(training)
    answer = {
        "files": {**vars(files), "curve": None if problem else files.curve},
        "best": training.best,
        "history": training.history,
        "stopped_early": training.stopped_early,
        "predictions": result.predictions,
        "report": result.report,
        "ignored": result.ignored,
    }
    emit(as_json, answer, training_text(result, no_curve=problem))


def _draw_curve(training: TrainingResult) -> str:
    """Draw the learning curve; return why there is none."""
    from vit_export.cli.report.pictures import draw_picture

    def draw(path: Path) -> None:
        from vit_export.cli.report.training_plot import training_plot

        training_plot(training.history, path)

    return draw_picture(training.files.curve, draw)

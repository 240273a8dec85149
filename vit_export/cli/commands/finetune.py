"""`vit-export finetune`: train a variant or a checkpoint on a data set."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vit_export.cli.console import ProgressBar, attributes, emit, what_remains
from vit_export.cli.option_fields import command, option
from vit_export.cli.options import CheckpointOptions, given
from vit_export.progress import silent

if TYPE_CHECKING:  # it imports torch
    from vit_export.training.history import EpochRecord


@dataclass(frozen=True, kw_only=True)
class _Options(CheckpointOptions):
    data: Path = option(
        "Source", "A folder per class, train/ and val/, or a digits CSV.", "PATH", required=True
    )
    epochs: int | None = option("Recipe")
    batch_size: int | None = option("Recipe")
    optimizer: str | None = option("Recipe", choices=["adamw", "adam"])
    learning_rate: float | None = option("Recipe", "Peak learning rate, after the warm-up.")
    warmup_epochs: float | None = option("Recipe")
    weight_decay: float | None = option("Recipe")
    clip_grad_norm: float | None = option("Recipe")
    validation_fraction: float | None = option(
        "Recipe", "Share of every class held out, where there is no val/ folder."
    )
    patience: int | None = option("Recipe", "Stop after this many epochs without a better one.")
    seed: int | None = option("Recipe")
    label_smoothing: float | None = option("Regularisation")
    drop_path_rate: float | None = option("Regularisation", "Stochastic depth of the last block.")
    rotation_degrees: float | None = option("Regularisation", "Largest random rotation.")
    shift: float | None = option("Regularisation", "Largest random shift, as a share of the side.")
    device: str = option("Run", "cpu, cuda, or auto.", default="auto")
    resume: bool = option("Run", "Resume an interrupted run.")
    predict: Path | None = option("Output", "Classify this CSV, and write ImageId,Label.", "CSV")
    output: Path | None = option(
        "Output", "By default ./<variant>.safetensors, or <weights>.finetuned.safetensors", "PATH"
    )


@command(_Options)
def finetune(options: _Options, as_json: bool) -> None:
    """Train a variant or a checkpoint on labelled images.

    A variant starts from random weights.
    """
    from vit_export.cli.report.pictures import draw_picture
    from vit_export.cli.report.plots import training_plot
    from vit_export.cli.report.results import training_text
    from vit_export.training.history import TrainingFiles
    from vit_export.training.recipe import Recipe
    from vit_export.training.run import FinetuneSettings
    from vit_export.training.run import finetune as train

    recipe = given(**{name: getattr(options, name) for name in Recipe.__dataclass_fields__})
    settings = FinetuneSettings(
        overrides=options.overrides(drop_path_rate=options.drop_path_rate),
        recipe=Recipe(**recipe),
        variant=options.variant,
        weights=options.weights,
        layout=options.layout,
        reset_head=options.reset_head,
        device=options.device,
        resume=options.resume,
        predict=options.predict,
    )
    path = options.output or settings.default_output()
    files, started = TrainingFiles.beside(path), time.time()

    def remains() -> str:
        state = files.state
        if state.is_file() and (options.resume or state.stat().st_mtime >= started):
            return f"{state} holds the finished epochs, resume with --resume"
        return "no epoch was finished, so nothing was saved"

    def show_epoch(done: "EpochRecord") -> None:
        progress.line(
            f"epoch {done.epoch}/{settings.recipe.epochs}  loss {done.train_loss:.4f}  "
            f"val loss {done.val_loss:.4f}  val accuracy {100 * done.val_accuracy:.2f} %  "
            f"{done.time_s:.1f} s"
        )

    with what_remains(remains), ProgressBar() as progress:
        step_progress = progress if progress.live else silent
        result = train(options.data, path, settings=settings, progress=progress,
                       step_progress=step_progress, epoch_done=show_epoch)  # fmt: skip
    problem = draw_picture(files.curve, training_plot, result.history, result.best)
    data = {
        "files": {**vars(files), "curve": None if problem else files.curve},
        **attributes(result, "best history stopped_early predictions report ignored"),
    }
    emit(as_json, data, training_text(result, no_curve=problem))

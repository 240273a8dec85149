"""Fine-tune on labelled images: data, model and image preparation made ready, then trained."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec import structs

from vit_export.artifact.preprocess import Preprocess
from vit_export.checkpoint.load import LoadReport, checkpoint_stem, load_checkpoint
from vit_export.checkpoint.tensor_files import INDEX_SUFFIX
from vit_export.errors import DataError, UsageError
from vit_export.images import digits_csv
from vit_export.images.dataset import class_names, read_folder, split_folders
from vit_export.model.vit import VisionTransformer
from vit_export.progress import Progress, silent
from vit_export.training.history import EpochRecord, TrainingFiles, best_of, load_state
from vit_export.training.loop import train
from vit_export.training.predict import choose_device, memory_errors, predict_logits
from vit_export.training.recipe import Recipe, initial_model
from vit_export.training.split import split_data
from vit_export.variants import get_variant


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """Settings of `finetune`."""

    variant: str | None = None  # name of a variant; optional with `weights`
    weights: str | os.PathLike[str] | None = None  # checkpoint to start from; default: random
    layout: str | None = None  # how the checkpoint names its tensors; recognised by default
    overrides: Mapping[str, Any] = field(default_factory=dict)  # config fields to change
    reset_head: bool = False  # replace the head of the weights with a zero-initialised one
    recipe: Recipe = field(default_factory=Recipe)
    device: str = "auto"  # or "cpu", "cuda", "cuda:1"
    resume: bool = False  # continue an interrupted run with the same output
    predict: Path | None = None  # a CSV of digits without labels to classify at the end

    def __post_init__(self) -> None:
        if self.variant is None and self.weights is None:
            raise UsageError(
                "found nothing to train, expected a variant or weights",
                hint="give --variant NAME or --weights FILE",
            )
        if self.reset_head and self.weights is None:
            raise UsageError("--reset-head needs --weights: random weights have a new head")
        if "num_classes" in self.overrides:
            raise UsageError(
                f"num_classes={self.overrides['num_classes']}: the number of classes comes from "
                "the data",
                hint="leave num_classes out",
            )

    def default_output(self) -> Path:
        """Name a checkpoint after the variant, or the weights' file, folder or hub repository."""
        if self.weights is None:
            return Path(f"{get_variant(self.variant or '').variant}.safetensors")
        hub = get_variant(self.variant).hub if self.variant is not None else ""
        text = f"hf:{hub}" if hub and self.weights == "hub" else os.fspath(self.weights)
        if text.startswith("hf:"):
            text = f"{text.removeprefix('hf:').partition('@')[0]}.safetensors"
        return Path(f"{checkpoint_stem(text)}.finetuned.safetensors")


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """Result of `finetune`."""

    files: TrainingFiles
    history: list[EpochRecord]
    best: EpochRecord  # the epoch whose weights are in the checkpoint
    stopped_early: bool  # patience ran out before the last epoch
    num_train: int  # images
    num_validation: int  # images
    report: LoadReport | None  # what became of every tensor of the weights
    ignored: tuple[str, ...]  # files in the data folders that are not images, by relative name
    predictions: Path | None  # the classes of the `predict` file


def finetune(
    data: Path,
    output: Path,
    *,
    settings: FinetuneSettings,
    progress: Progress = silent,
    step_progress: Progress = silent,
    epoch_done: Callable[[EpochRecord], None] = lambda record: None,
) -> FinetuneResult:
    """Train on a folder of class folders, on folders `train` and `val` of these, or on a CSV.

    Errors in paths, settings and weights come before the first image is decoded. `progress` is
    called while data are read, `step_progress` after each training step, with its loss.
    """
    _check_paths(data, settings.predict)
    device, recipe = choose_device(settings.device), settings.recipe
    files = TrainingFiles.beside(output)
    if settings.weights is not None:
        _check_weights_not_replaced(Path(settings.weights), files, resume=settings.resume)
    if settings.resume:
        load_state(files.state, origin=dataclasses.asdict(recipe))
    train_path, validation_path = split_folders(data) if data.is_dir() else (data, None)
    labels = class_names(train_path) if data.is_dir() else digits_csv.LABELS
    model, preprocess, report = _starting_point(settings, labels)
    files.make_folder()
    validation = to_predict = predictions = None
    if data.is_dir():
        training = read_folder(train_path, preprocess, labels, progress)
    else:
        training = digits_csv.read_digits(data, preprocess, labelled=True, progress=progress)
    if validation_path is not None:
        validation = read_folder(validation_path, preprocess, labels, progress)
    split = split_data(training, validation, fraction=recipe.validation_fraction, seed=recipe.seed)
    if settings.predict is not None:
        to_predict = digits_csv.read_digits(settings.predict, preprocess, labelled=False).images
    history = train(
        model.to(device),
        split,
        recipe,
        files,
        resume=settings.resume,
        progress=step_progress,
        epoch_done=epoch_done,
    )
    if to_predict is not None:
        predictions = output.with_suffix(".predictions.csv")
        with memory_errors(device, recipe.batch_size):
            logits = predict_logits(model, to_predict, batch_size=recipe.batch_size)
        digits_csv.write_predictions(predictions, logits.argmax(dim=1).numpy())
    return FinetuneResult(
        files=files,
        history=history,
        best=best_of(history),
        stopped_early=len(history) < recipe.epochs,
        num_train=len(split.train_rows),
        num_validation=len(split.validation_rows),
        report=report,
        ignored=tuple(name for images in split.data_sets for name in images.ignored),
        predictions=predictions,
    )


def _check_paths(data: Path, predict: Path | None) -> None:
    if not data.is_dir() and not (data.exists() and data.suffix.lower() == ".csv"):
        found = "is not a folder and not a .csv file" if data.exists() else "does not exist"
        raise DataError(
            f"{data} {found}; expected a folder with one folder of images per class, or a CSV of "
            "label,pixel0,pixel1,..."
        )
    if predict is not None and data.is_dir():
        raise UsageError("--predict takes a digits CSV, which needs a digits CSV as --data")
    if predict is not None and not predict.exists():
        raise DataError(f"{predict} does not exist; expected a CSV of pixel0,pixel1,...")


def _check_weights_not_replaced(weights: Path, files: TrainingFiles, *, resume: bool) -> None:
    if not weights.exists():  # a hub's, or an error of the loading
        return
    outputs: tuple[Path, ...] = dataclasses.astuple(files)
    replaced = [out for out in outputs if out.exists() and out.samefile(weights)]
    if weights.is_dir() or weights.name.endswith(INDEX_SUFFIX):
        folder = weights.resolve() if weights.is_dir() else weights.resolve().parent
        at_risk = (files.checkpoint,) if resume else outputs
        replaced += [out for out in at_risk if out.exists() and out.resolve().parent == folder]
    if replaced:
        raise UsageError(
            f"cannot train into {files.checkpoint}: that would replace {replaced[0]}, which "
            f"belongs to --weights {weights}",
            hint="give another name with -o",
        )


def _starting_point(
    settings: FinetuneSettings, labels: tuple[str, ...]
) -> tuple[VisionTransformer, Preprocess, LoadReport | None]:
    """Load the model from the weights, or initialise that of the variant."""
    classes = {"num_classes": len(labels)}
    if settings.weights is None:
        config = get_variant(settings.variant or "", **{**settings.overrides, **classes})
        return initial_model(config, seed=settings.recipe.seed), Preprocess.of(config), None
    loaded = load_checkpoint(
        settings.weights,
        variant=settings.variant,
        overrides={**settings.overrides, **(classes if settings.reset_head else {})},
        layout=settings.layout,
        reset_head=settings.reset_head,
    )
    if loaded.config.num_classes != len(labels):
        names = ", ".join([*labels[:5], *(["..."] if len(labels) > 5 else [])])
        raise UsageError(
            f"the checkpoint has {loaded.config.num_classes} classes, the data {len(labels)} "
            f"({names})",
            hint="--reset-head replaces the head of loaded weights",
        )
    # training makes the preparation the model's own
    return loaded.model, structs.replace(loaded.preprocess, known=True), loaded.report

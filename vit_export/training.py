"""Data, model and image preparation joined for training."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_export.errors import DataError, UsageError
from vit_export.manifest import Preprocess
from vit_export.model.checkpoint import Loaded, LoadReport, load_checkpoint
from vit_export.model.data import Decode, LabelledImages, Pixels, read_folder
from vit_export.model.digits import read_digits, read_unlabelled_digits, write_predictions
from vit_export.model.finetune import EpochProgress, TrainingResult, finetune
from vit_export.model.finetune import silent as silent_epochs
from vit_export.model.predict import predict_logits
from vit_export.model.recipe import TrainingSettings, fresh_model
from vit_export.model.vit import VisionTransformer
from vit_export.progress import Progress, silent
from vit_export.runtime.image import resize_and_crop
from vit_export.variants import get_variant


@dataclass(frozen=True, kw_only=True)
class Start:
    """What training starts from.

    Attributes:
        variant: Name of a variant; may be left out with weights.
        weights: Checkpoint to start from; random weights without.
        overrides: Config fields to change.
        reset_head: Whether weights of another number of classes get a new, zero head.
    """

    variant: str | None = None
    weights: str | os.PathLike[str] | None = None
    layout: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    reset_head: bool = False


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished training.

    Attributes:
        model: The best epoch's model, in evaluation mode.
        result: Epochs and files.
        report: What became of the weights it started from.
        predictions: Where the test file's classes were written.
    """

    model: VisionTransformer
    result: TrainingResult
    report: LoadReport | None
    predictions: Path | None


def train(
    start: Start,
    data: Path,
    output: Path,
    *,
    settings: TrainingSettings,
    device: str = "auto",
    resume: bool = False,
    test: Path | None = None,
    progress: Progress = silent,
    epochs_progress: Callable[[EpochProgress], None] = silent_epochs,
) -> Trained:
    """Train on a folder of class folders, or on a digits CSV.

    Args:
        start: What to start from.
        data: A folder, or a `.csv` file of `label,pixel0,...`.
        output: The `.safetensors` to write.
        settings: How to train.
        device: `"auto"`, `"cpu"` or `"cuda"`.
        resume: Whether to go on where an earlier run with this output stopped.
        test: A CSV without labels, whose classes are written as `ImageId,Label`.
        progress: Told about the reading of data.
        epochs_progress: Told about every step.

    Raises:
        UsageError: Start and data do not fit.
        DataError: The data cannot be used.
        CheckpointError: The weights cannot be loaded.
    """
    if test is not None and data.suffix.lower() != ".csv":
        raise UsageError("--predict takes a digits CSV: train on one as well")
    preprocess = _preparation(start)

    def decode(image: Path | Pixels) -> Pixels:
        return resize_and_crop(image, preprocess)

    progress("read the images")
    images = _read(data, decode, progress)
    unlabelled = read_unlabelled_digits(test, decode=decode) if test is not None else None
    model, report = _model(start, images, seed=settings.seed)
    result = finetune(
        model=model,
        data=images,
        settings=settings,
        output=output,
        device=device,
        resume=resume,
        progress=epochs_progress,
    )
    predictions = None
    if unlabelled is not None:
        predictions = output.with_suffix(".predictions.csv")
        write_predictions(predictions, _classes(model, unlabelled))
    return Trained(model=model, result=result, report=report, predictions=predictions)


def _read(data: Path, decode: Decode, progress: Progress) -> LabelledImages:
    if data.is_dir():
        return read_folder(data, decode=decode, progress=progress)
    if data.suffix.lower() == ".csv":
        return read_digits(data, decode=decode, progress=progress)
    found = "is no folder and no .csv file" if data.exists() else "does not exist"
    raise DataError(
        f"{data} {found}; expected a folder with one folder of images per class, or a CSV of "
        "label,pixel0,pixel1,..."
    )


def _preparation(start: Start) -> Preprocess:
    """How images are prepared, before the number of classes is known."""
    if start.weights is not None:
        return _load(start, {}).preprocess
    if start.variant is None:
        raise UsageError("say what to train: --variant NAME, or --weights FILE")
    return Preprocess.of(get_variant(start.variant, **start.overrides))


def _load(start: Start, changes: Mapping[str, Any], *, reset_head: bool = False) -> Loaded:
    if start.weights is None:
        raise UsageError("no weights to load")
    return load_checkpoint(
        start.weights,
        variant=start.variant,
        overrides={**start.overrides, **changes},
        layout=start.layout,
        reset_head=reset_head,
    )


def _model(
    start: Start, images: LabelledImages, *, seed: int
) -> tuple[VisionTransformer, LoadReport | None]:
    """The model for these classes."""
    classes = {"num_classes": len(images.labels)}
    if start.weights is not None:
        loaded = _load(start, classes, reset_head=start.reset_head)
        return loaded.model, loaded.report
    if start.reset_head:
        raise UsageError("--reset-head is for --weights: a model from its start has a new head")
    return fresh_model(
        get_variant(start.variant or "", **{**start.overrides, **classes}), seed=seed
    ), None


def _classes(model: VisionTransformer, images: Pixels) -> NDArray[np.int64]:
    return predict_logits(model, images).argmax(dim=1).numpy()

"""Data, model and image preparation joined for training."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_export.artifact.manifest import Preprocess
from vit_export.checkpoint.load import Loaded, LoadReport, load_checkpoint
from vit_export.checkpoint.tensor_files import INDEX_SUFFIX
from vit_export.errors import DataError, UsageError
from vit_export.images.dataset import LabelledImages, Pixels, read_folder
from vit_export.images.digits_csv import read_digits, read_unlabelled_digits, write_predictions
from vit_export.images.prepare import resize_and_crop
from vit_export.model.vit import VisionTransformer
from vit_export.progress import Progress, silent
from vit_export.training.history import TrainingFiles, load_state
from vit_export.training.loop import EpochProgress, TrainingResult, finetune
from vit_export.training.loop import silent as silent_epochs
from vit_export.training.predict import choose_device, predict_logits
from vit_export.training.recipe import TrainingSettings, fresh_model
from vit_export.variants import ViTConfig, get_variant


@dataclass(frozen=True, kw_only=True)
class Start:
    """What training starts from.

    Attributes:
        variant: Name of a variant; may be left out with weights.
        weights: Checkpoint to start from; random weights without.
        overrides: Config fields to change.
        reset_head: Whether weights of another number of classes get a new, zero head.

    Raises:
        UsageError: On construction, when that is nothing to start from, or contradicts itself.
    """

    variant: str | None = None
    weights: str | os.PathLike[str] | None = None
    layout: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    reset_head: bool = False

    def __post_init__(self) -> None:
        if self.variant is None and self.weights is None:
            raise UsageError("say what to train: --variant NAME, or --weights FILE")
        if self.reset_head and self.weights is None:
            raise UsageError("--reset-head is for --weights: a model from its start has a new head")
        if "num_classes" in self.overrides:
            raise UsageError(
                f"num_classes={self.overrides['num_classes']}: the data say how many classes there "
                "are; leave it out"
            )

    def default_output(self) -> Path:
        """The checkpoint to write where no name is given, in the current folder.

        Never the name of the weights: those of a hub are all called `model.safetensors`.

        Raises:
            UnknownVariantError: No variant of that name.
        """
        if self.weights is None:
            return Path(f"{_config(self).variant}.safetensors")
        hub = get_variant(self.variant).hub if self.variant is not None else ""
        text = f"hf:{hub}" if hub and self.weights == "hub" else os.fspath(self.weights)
        if text.startswith("hf:"):
            stem = text.removeprefix("hf:").partition("@")[0].rpartition("/")[2]
        else:
            path = Path(os.path.abspath(text))
            name = path.name.removesuffix(INDEX_SUFFIX)
            stem = name if path.is_dir() else Path(name).stem
        return Path(f"{stem}.finetuned.safetensors")


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
        UsageError: Start and data do not fit, the output would replace the weights, or there is
            nothing to resume.
        DataError: The data cannot be used.
        ProviderError: The device is not there.
        CheckpointError: The weights cannot be loaded.
        OutputError: A file cannot be written.
    """
    _check_unreadable(data, test)
    choose_device(device)
    files = TrainingFiles.beside(output)
    if start.weights is not None:
        _check_own_input(start.weights, files, resume=resume)
    if resume:
        load_state(files.state, origin=dataclasses.asdict(settings))
    loaded = _load(start) if start.weights is not None else None
    preprocess = loaded.preprocess if loaded else Preprocess.of(_config(start))

    def decode(image: Path | Pixels) -> Pixels:
        return resize_and_crop(image, preprocess)

    progress("read the images")
    read = read_folder if data.is_dir() else read_digits
    images = read(data, decode=decode, progress=progress)
    unlabelled = read_unlabelled_digits(test, decode=decode) if test is not None else None
    model, report = _model(start, loaded, images, seed=settings.seed)
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


def _check_unreadable(data: Path, test: Path | None) -> None:
    if not data.is_dir() and not (data.exists() and data.suffix.lower() == ".csv"):
        found = "is no folder and no .csv file" if data.exists() else "does not exist"
        raise DataError(
            f"{data} {found}; expected a folder with one folder of images per class, or a CSV of "
            "label,pixel0,pixel1,..."
        )
    if test is not None and data.is_dir():
        raise UsageError("--predict takes a digits CSV: train on one as well")
    if test is not None and not test.exists():
        raise DataError(f"{test} does not exist; expected a CSV of pixel0,pixel1,...")


def _check_own_input(
    weights: str | os.PathLike[str], files: TrainingFiles, *, resume: bool
) -> None:
    """Refuse to write over what the training starts from."""
    path = Path(weights)
    if not path.exists():  # a hub's, or an error of the loading
        return
    outputs: tuple[Path, ...] = dataclasses.astuple(files)
    replaced = [out for out in outputs if out.exists() and out.samefile(path)]
    if path.is_dir() or path.name.endswith(INDEX_SUFFIX):
        folder = path.resolve() if path.is_dir() else path.resolve().parent
        at_risk = (files.checkpoint,) if resume else outputs
        replaced += [out for out in at_risk if out.exists() and out.resolve().parent == folder]
    if replaced:
        raise UsageError(
            f"cannot train into {files.checkpoint}: that would replace {replaced[0]}, which "
            f"belongs to --weights {path}; give another name with -o"
        )


def _config(start: Start, **changes: Any) -> ViTConfig:
    return get_variant(start.variant or "", **{**start.overrides, **changes})


def _load(start: Start, **changes: Any) -> Loaded:
    return load_checkpoint(
        start.weights or "",
        variant=start.variant,
        overrides={**start.overrides, **changes},
        layout=start.layout,
        reset_head=bool(changes),
    )


def _model(
    start: Start, loaded: Loaded | None, images: LabelledImages, *, seed: int
) -> tuple[VisionTransformer, LoadReport | None]:
    """The model for these classes; loaded once more where it gets a new head."""
    classes = len(images.labels)
    if loaded is None:
        return fresh_model(_config(start, num_classes=classes), seed=seed), None
    if start.reset_head:
        loaded = _load(start, num_classes=classes)
    return loaded.model, loaded.report


def _classes(model: VisionTransformer, images: Pixels) -> NDArray[np.int64]:
    return predict_logits(model, images).argmax(dim=1).numpy()

"""Train a Vision Transformer on labelled images, from its start or from loaded weights.

Every epoch draws its random numbers from the seed and its own number alone: a run that was
interrupted and resumed ends, on a CPU, in the same weights to the bit.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file

from vit_export.checkpoint.own import save_checkpoint
from vit_export.errors import CheckpointError, OutputError, UsageError, VitExportError
from vit_export.images.dataset import LabelledImages
from vit_export.model.vit import VisionTransformer
from vit_export.training.augment import rotate_and_shift
from vit_export.training.curve import draw_curve
from vit_export.training.history import (
    EpochRecord,
    TrainingFiles,
    TrainingState,
    best_of,
    load_state,
    save_state,
    write_history,
)
from vit_export.training.predict import autocast, choose_device, normalized, predict_logits
from vit_export.training.recipe import TrainingSettings, learning_rate, make_optimizer
from vit_export.training.split import stratified_split


@dataclass(frozen=True, kw_only=True)
class EpochProgress:
    """Where a run stands after a step.

    Attributes:
        epoch: Counted from 1.
        epochs: As many as there will be without an early stop.
        step: Steps done in this epoch.
        steps: Steps in an epoch.
        loss: Mean over the images of this epoch so far.
        accuracy: Of the images of this epoch so far.
        finished: The whole epoch, validation included; `None` while it goes on.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    accuracy: float
    finished: EpochRecord | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """A run that has ended.

    Attributes:
        best: The epoch whose weights are in the checkpoint.
        history: All epochs.
        files: Where everything is.
        stopped_early: Whether patience ran out before the last epoch.
        num_train: Number of images trained on.
        held_out: Indices of the validation images in the data set, int64.
    """

    best: EpochRecord
    history: tuple[EpochRecord, ...]
    files: TrainingFiles
    stopped_early: bool
    num_train: int
    held_out: NDArray[np.int64]


def silent(progress: EpochProgress) -> None:
    """Ignore progress."""


def finetune(
    *,
    model: VisionTransformer,
    data: LabelledImages,
    settings: TrainingSettings,
    output: Path,
    device: str = "auto",
    resume: bool = False,
    progress: Callable[[EpochProgress], None] = silent,
) -> TrainingResult:
    """Train a model on part of the data and keep the epoch that is best on the rest.

    Args:
        model: Changed in place; afterwards in evaluation mode, with the best epoch's weights.
        data: Images at the size of the model, in as many classes as it has.
        settings: How to train.
        output: The checkpoint to write, `NAME.safetensors`; other files stand beside it.
        device: As `choose_device` takes it.
        resume: Go on where an earlier run with the same output stopped.
        progress: Called after each step, and once more when an epoch's files are written.

    Raises:
        UsageError: Data and model do not fit, or there is nothing that fits to resume.
        DataError: Too few images.
        ProviderError: The device is not there.
        CheckpointError: What there is to resume from is damaged or incomplete.
        OutputError: A file cannot be written.
        VitExportError: The loss is no longer finite, or the device's memory is full.
    """
    _check_misfit(model, data)
    files = TrainingFiles.beside(output)
    run = _Run(model, data, settings, files, choose_device(device), progress)
    if resume:
        run.resume()
    while not run.ended:
        with _room_in_memory(run.device, settings.batch_size):
            done = run.train_epoch()
        with _room_on_disk(output.parent):
            run.save()
        progress(done)
    with _room_on_disk(output.parent):
        if files.best.is_file():
            files.best.replace(files.checkpoint)
    model.load_state_dict(load_file(files.checkpoint))
    model.eval()
    return TrainingResult(
        best=best_of(run.history),
        history=tuple(run.history),
        files=files,
        stopped_early=len(run.history) < settings.epochs,
        num_train=len(run.train_rows),
        held_out=run.held_out,
    )


@contextmanager
def _room_in_memory(device: torch.device, batch_size: int) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise VitExportError(
            f"training on {device} ran out of memory with batches of {batch_size} images; "
            f"try --batch-size {max(1, batch_size // 2)}"
        ) from error


@contextmanager
def _room_on_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write the files of the training to {folder}: {error}; mend that, then go on "
            "with --resume"
        ) from error


class _Run:
    """A run of training between two epochs."""

    def __init__(
        self,
        model: VisionTransformer,
        data: LabelledImages,
        settings: TrainingSettings,
        files: TrainingFiles,
        device: torch.device,
        progress: Callable[[EpochProgress], None],
    ) -> None:
        self.model = model.to(device)
        self.data = data
        self.settings = settings
        self.files = files
        self.device = device
        self.progress = progress
        self.targets = torch.from_numpy(data.targets)
        self.train_rows, self.held_out = stratified_split(
            data.targets, fraction=settings.validation_fraction, seed=settings.seed
        )
        self.optimizer = make_optimizer(model, settings)
        self.history: list[EpochRecord] = []

    @property
    def ended(self) -> bool:
        """Whether all epochs are done, or patience has run out."""
        done, patience = len(self.history), self.settings.patience
        if done and patience and done - best_of(self.history).epoch >= patience:
            return True
        return done >= self.settings.epochs

    @property
    def origin(self) -> dict[str, Any]:
        """What a state must share with this run to be resumed by it."""
        return {
            **dataclasses.asdict(self.settings),
            **dataclasses.asdict(self.model.config),
            "labels": self.data.labels,
            "data sha256": self.data.sha256,
        }

    def resume(self) -> None:
        """Take over an earlier run's weights, optimizer and history."""
        state = load_state(self.files.state, origin=self.origin)
        self.history = list(state.history)
        best, published = self.files.best, self.files.checkpoint
        if not (best.is_file() or (self.ended and published.is_file())):
            raise CheckpointError(
                f"cannot resume: {best} is gone, which holds the best of the {len(self.history)} "
                "epochs so far; put it back, or start without --resume"
            )
        self.model.load_state_dict(state.model)
        self.optimizer.load_state_dict(dict(state.optimizer))

    def save(self) -> None:
        """Write everything that the epochs so far amount to, the state last."""
        if best_of(self.history) is self.history[-1]:
            save_checkpoint(self.model, self.files.best, labels=self.data.labels)
        save_checkpoint(self.model, self.files.last, labels=self.data.labels)
        write_history(self.files.history, self.history)
        draw_curve(self.history, self.files.curve)
        state = TrainingState(
            origin=self.origin,
            history=self.history,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
        )
        save_state(self.files.state, state)

    def train_epoch(self) -> EpochProgress:
        """Train on every image once, then evaluate on those held out."""
        start = time.perf_counter()
        epoch = len(self.history) + 1
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            sequence = np.random.SeedSequence((self.settings.seed, epoch))
            torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))
            last = self._train_steps(epoch)
        logits = predict_logits(self.model, self.data.images, rows=self.held_out)
        targets = self.targets[self.held_out]
        val_loss = F.cross_entropy(logits, targets).item()
        self._check_infinite(val_loss, last)
        record = EpochRecord(
            epoch=epoch,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            train_loss=last.loss,
            train_accuracy=last.accuracy,
            val_loss=val_loss,
            val_accuracy=(logits.argmax(dim=1) == targets).double().mean().item(),
            time_s=time.perf_counter() - start,
        )
        self.history.append(record)
        return dataclasses.replace(last, finished=record)

    def _train_steps(self, epoch: int) -> EpochProgress:
        self.model.train()
        settings = self.settings
        order = self.train_rows[torch.randperm(len(self.train_rows)).numpy()]
        batches = [
            order[start : start + settings.batch_size]
            for start in range(0, len(order), settings.batch_size)
        ]
        seen, loss_sum, right = 0, 0.0, 0
        for step, rows in enumerate(batches):
            rate = learning_rate(
                settings, step=(epoch - 1) * len(batches) + step, steps_per_epoch=len(batches)
            )
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss, hits = self._step(rows)
            seen += len(rows)
            loss_sum += loss * len(rows)
            right += hits
            now = EpochProgress(
                epoch=epoch,
                epochs=settings.epochs,
                step=step + 1,
                steps=len(batches),
                loss=loss_sum / seen,
                accuracy=right / seen,
            )
            self._check_infinite(loss, now)
            self.progress(now)
        return now

    def _step(self, rows: NDArray[np.int64]) -> tuple[float, int]:
        """One step on some images: its loss, and how many of them were right."""
        images = normalized(self.model, self.data.images[rows])
        images = rotate_and_shift(
            images, degrees=self.settings.rotation_degrees, shift=self.settings.shift
        )
        targets = self.targets[rows].to(self.device)
        with autocast(self.device):
            logits = self.model(images)
        loss = F.cross_entropy(
            logits.float(), targets, label_smoothing=self.settings.label_smoothing
        )
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_grad_norm)
        self.optimizer.step()
        return loss.item(), int((logits.argmax(dim=1) == targets).sum())

    def _check_infinite(self, loss: float, now: EpochProgress) -> None:
        if math.isfinite(loss):
            return
        rate = self.optimizer.param_groups[0]["lr"]
        kept = f"; the best epoch so far is in {self.files.best}" if self.history else ""
        raise VitExportError(
            f"training stopped: the loss is {loss} in epoch {now.epoch}, step {now.step} of "
            f"{now.steps}, at learning rate {rate:.3g}; expected a finite number. Try "
            f"--learning-rate {self.settings.learning_rate / 10:.3g}, a longer --warmup-epochs "
            f"or a smaller --clip-grad-norm{kept}"
        )


def _check_misfit(model: VisionTransformer, data: LabelledImages) -> None:
    config = model.config
    if config.num_classes != len(data.labels):
        raise UsageError(
            f"cannot train {config.variant}: it has {config.num_classes} classes and the data "
            f"{len(data.labels)} ({', '.join(data.labels[:5])}, ...); build the model with "
            f"num_classes={len(data.labels)} (--reset-head for loaded weights)"
        )
    expected = (*config.image_hw, config.in_chans)
    if data.images.shape[1:] != expected:
        raise UsageError(
            f"cannot train {config.variant}: its images are {expected} (height, width, "
            f"channels) and those of the data {data.images.shape[1:]}; decode them at that size"
        )

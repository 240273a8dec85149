"""Train a Vision Transformer on labelled images.

Every epoch draws its random numbers from the seed and its own number alone: on a CPU, a run that
was interrupted and resumed ends in bit-identical weights.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file

from vit_export.checkpoint.own import save_checkpoint
from vit_export.errors import CheckpointError, OutputError, VitExportError
from vit_export.model.vit import VisionTransformer
from vit_export.progress import Progress
from vit_export.training.augment import rotate_and_shift
from vit_export.training.history import (
    EpochRecord,
    TrainingFiles,
    best_of,
    load_state,
    save_state,
)
from vit_export.training.predict import autocast, memory_errors, normalized, predict_logits
from vit_export.training.recipe import Recipe, learning_rate, make_optimizer
from vit_export.training.split import Split


def train(
    model: VisionTransformer,
    split: Split,
    recipe: Recipe,
    files: TrainingFiles,
    *,
    resume: bool,
    progress: Progress,
    epoch_done: Callable[[EpochRecord], None],
) -> list[EpochRecord]:
    """Train a model in place, on its device; it ends with the weights of the best epoch.

    `progress` is called after each step, `epoch_done` when the files of an epoch are written.
    """
    run = _Run(model, split, recipe, files, progress)
    if resume:
        run.resume()
    try:
        while not run.ended:
            with memory_errors(run.device, recipe.batch_size):
                run.train_epoch()
            run.save_epoch()
            epoch_done(run.history[-1])
        run.finish()
    except BrokenPipeError:
        raise  # of the terminal or pipe that shows the progress
    except OSError as error:
        raise OutputError(
            f"cannot write the files of the training to {files.checkpoint.parent}: {error}",
            hint="fix this, then continue with --resume",
        ) from error
    model.load_state_dict(load_file(files.checkpoint))
    model.eval()
    return run.history


@dataclass
class _Run:
    """A training run between two epochs."""

    model: VisionTransformer
    split: Split
    recipe: Recipe
    files: TrainingFiles
    progress: Progress
    history: list[EpochRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.device = self.model.patch_embed.proj.weight.device
        self.optimizer = make_optimizer(self.model, self.recipe)
        self.origin = {
            **dataclasses.asdict(self.recipe),
            **dataclasses.asdict(self.model.config),
            "labels": self.split.train.labels,
            "data sha256": "+".join(data.sha256 for data in self.split.data_sets),
        }

    @property
    def ended(self) -> bool:
        """Whether all epochs are done, or patience has run out."""
        epochs, patience = len(self.history), self.recipe.patience
        if epochs and patience and epochs - best_of(self.history).epoch >= patience:
            return True
        return epochs >= self.recipe.epochs

    def resume(self) -> None:
        """Read weights, optimizer and history of an earlier run."""
        self.history, model, optimizer = load_state(self.files.state, origin=self.origin)
        best, published = self.files.best, self.files.checkpoint
        if not (best.is_file() or (self.ended and published.is_file())):
            raise CheckpointError(
                f"cannot resume: {best} is missing, which holds the best of the "
                f"{len(self.history)} epochs so far",
                hint="restore the file, or start without --resume",
            )
        if model:
            self.model.load_state_dict(model)
            self.optimizer.load_state_dict(optimizer)

    def save_epoch(self) -> None:
        """Write the weights if they are the best so far, the history, and the state last."""
        if best_of(self.history) is self.history[-1]:
            self._save_weights(self.files.best)
        lines = [json.dumps(dataclasses.asdict(record)) + "\n" for record in self.history]
        self.files.history.write_text("".join(lines), encoding="utf-8")
        self._save_state(model=self.model.state_dict(), optimizer=self.optimizer.state_dict())

    def finish(self) -> None:
        """Write the last weights, publish the best, and leave a state without weights."""
        if not self.files.best.is_file():  # the run had finished before it was resumed
            return
        self._save_weights(self.files.last)
        self.files.best.replace(self.files.checkpoint)
        self._save_state(model={}, optimizer={})

    def _save_weights(self, path: Path) -> None:
        save_checkpoint(self.model, path, labels=self.split.train.labels)

    def _save_state(self, **state_dicts: dict[str, Any]) -> None:
        history = [dataclasses.asdict(record) for record in self.history]
        save_state(self.files.state, {"origin": self.origin, "history": history, **state_dicts})

    def train_epoch(self) -> None:
        """Train on every training image once, then evaluate on the validation images."""
        start = time.perf_counter()
        epoch = len(self.history) + 1
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            sequence = np.random.SeedSequence((self.recipe.seed, epoch))
            torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))
            loss, accuracy = self._train_steps(epoch)
        data, rows = self.split.validation, self.split.validation_rows
        batch_size = self.recipe.batch_size
        logits = predict_logits(self.model, data.images, rows=rows, batch_size=batch_size)
        targets = torch.from_numpy(data.targets[rows])
        val_loss = F.cross_entropy(logits, targets).item()
        self._check_finite(val_loss, f"the validation of epoch {epoch}")
        record = EpochRecord(
            epoch=epoch,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            train_loss=loss,
            train_accuracy=accuracy,
            val_loss=val_loss,
            val_accuracy=(logits.argmax(dim=1) == targets).double().mean().item(),
            time_s=time.perf_counter() - start,
        )
        self.history.append(record)

    def _train_steps(self, epoch: int) -> tuple[float, float]:
        """Train on every training image once; return the means of loss and accuracy."""
        self.model.train()
        recipe, rows = self.recipe, self.split.train_rows
        order = rows[torch.randperm(len(rows)).numpy()]
        batches = np.split(order, range(recipe.batch_size, len(order), recipe.batch_size))
        images, loss_sum, correct = 0, 0.0, 0
        for step, batch in enumerate(batches):
            done = (epoch - 1) * len(batches) + step
            rate = learning_rate(recipe, step=done, steps_per_epoch=len(batches))
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss, batch_correct = self._step(batch)
            images += len(batch)
            loss_sum += loss * len(batch)
            correct += batch_correct
            self._check_finite(loss, f"epoch {epoch}, step {step + 1} of {len(batches)}")
            means = f"loss {loss_sum / images:.4f}  accuracy {100 * correct / images:.1f} %"
            self.progress(f"epoch {epoch}/{recipe.epochs}  {means}", step + 1, len(batches))
        return loss_sum / images, correct / images

    def _step(self, rows: NDArray[np.int64]) -> tuple[float, int]:
        """Update the weights once; return the loss and the number of correct images."""
        recipe = self.recipe
        images = normalized(self.model, self.split.train.images[rows])
        images = rotate_and_shift(images, degrees=recipe.rotation_degrees, shift=recipe.shift)
        targets = torch.from_numpy(self.split.train.targets[rows]).to(self.device)
        with autocast(self.device):
            logits = self.model(images)
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=recipe.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_grad_norm)
        self.optimizer.step()
        return loss.item(), int((logits.argmax(dim=1) == targets).sum())

    def _check_finite(self, loss: float, where: str) -> None:
        if math.isfinite(loss):
            return
        rate = self.optimizer.param_groups[0]["lr"]
        best = f"; the best epoch so far is in {self.files.best}" if self.history else ""
        raise VitExportError(
            f"training stopped: the loss is {loss} in {where}, at learning rate {rate:.3g}; "
            f"expected a finite number{best}",
            hint=f"try --learning-rate {self.recipe.learning_rate / 10:.3g}, a longer "
            "--warmup-epochs or a smaller --clip-grad-norm",
        )

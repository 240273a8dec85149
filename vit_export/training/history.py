"""Results of a training run's epochs, its files, and the state that `--resume` reads."""

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vit_export.errors import CheckpointError, OutputError, UsageError

STATE_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """Results of one epoch: means over the training images and over the validation images."""

    epoch: int  # counted from 1
    learning_rate: float  # of its last step
    train_loss: float
    train_accuracy: float  # share of augmented images, while the weights still change
    val_loss: float
    val_accuracy: float
    time_s: float


def best_of(history: Sequence[EpochRecord]) -> EpochRecord:
    """Return the first epoch with the most correct validation images and, of these, least loss."""
    return max(history, key=lambda record: (record.val_accuracy, -record.val_loss))


@dataclass(frozen=True, kw_only=True)
class TrainingFiles:
    """Paths of the files of one run."""

    checkpoint: Path  # weights of the best epoch, once the run has ended
    best: Path  # weights of the best epoch so far, until the run ends
    last: Path  # weights of the last epoch, once the run has ended
    history: Path  # one JSON object per epoch and line
    curve: Path  # PNG of losses and accuracies by epoch, drawn by the command
    state: Path  # everything that `--resume` needs

    @classmethod
    def beside(cls, checkpoint: Path) -> "TrainingFiles":
        """Name the files after the checkpoint."""
        if checkpoint.suffix != ".safetensors":
            raise UsageError(
                f"cannot write a checkpoint to {checkpoint}: expected a name that ends in "
                ".safetensors",
                hint=f"-o {checkpoint.with_suffix('.safetensors')}",
            )
        return cls(
            checkpoint=checkpoint,
            best=checkpoint.with_suffix(".best.safetensors"),
            last=checkpoint.with_suffix(".last.safetensors"),
            history=checkpoint.with_suffix(".history.jsonl"),
            curve=checkpoint.with_suffix(".curve.png"),
            state=checkpoint.with_suffix(".state.pt"),
        )

    def make_folder(self) -> None:
        """Make the folder of the files."""
        folder = self.checkpoint.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the folder {folder}: {error.strerror}") from error


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write `origin`, `history`, `model` and `optimizer`, replacing an older file in one step.

    The origin (settings, config and data) must be the same to resume. Both state_dicts are empty
    once the run has ended and its files hold the weights.
    """
    temporary = path.with_suffix(".pt.part")
    try:
        torch.save({"schema": STATE_SCHEMA, **state}, temporary)
    except RuntimeError as error:  # how torch's own file writer fails
        raise OSError(f"{temporary}: {error}") from error
    temporary.replace(path)


def load_state(
    path: Path, *, origin: Mapping[str, Any]
) -> tuple[list[EpochRecord], dict[str, Any], dict[str, Any]]:
    """Read history, model and optimizer of a run to resume, which must have this origin."""
    if not path.is_file():
        raise UsageError(
            f"cannot resume: found no {path}, the state of an earlier run with the same output",
            hint="start without --resume",
        )
    try:
        if not zipfile.is_zipfile(path):  # the format of torch.save; other pickles are not opened
            raise ValueError("not a zip archive")
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["schema"] != STATE_SCHEMA:
            raise ValueError(f"schema {content['schema']}")
        history = [EpochRecord(**record) for record in content["history"]]
        model, optimizer, earlier = (content[name] for name in ("model", "optimizer", "origin"))
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ValueError) as e:
        raise CheckpointError(
            f"cannot resume: {path} is not a training state that this version wrote "
            f"({str(e).splitlines()[0] if str(e) else type(e).__name__})",
            hint="start without --resume",
        ) from e
    changed = [
        f"\n  {name}: {earlier.get(name)!r} then, {value!r} now"
        for name, value in origin.items()
        if earlier.get(name) != value
    ]
    if changed:
        raise UsageError(
            f"cannot resume {path}: it belongs to a run with other settings or data"
            + "".join(changed),
            hint="use the same settings and data, or start without --resume",
        )
    return history, model, optimizer

"""What a training run leaves behind, and what it needs to go on.

Next to the checkpoint `digits.safetensors` stand `digits.best.safetensors` (until the run
ends and it takes the checkpoint's place), `digits.last.safetensors`, `digits.history.jsonl`,
`digits.curve.png` and `digits.state.pt`.
"""

from __future__ import annotations

import dataclasses
import json
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
    """One epoch: means over the images seen in training, and over those held out."""

    epoch: int  # counted from 1
    learning_rate: float  # of its last step
    train_loss: float
    train_accuracy: float  # share of augmented images, while the weights still change
    val_loss: float
    val_accuracy: float
    time_s: float

    def better_than(self, other: EpochRecord) -> bool:
        """More held-out images right; of equally many, a smaller loss."""
        mine, theirs = ((record.val_accuracy, -record.val_loss) for record in (self, other))
        return mine > theirs


def best_of(history: Sequence[EpochRecord]) -> EpochRecord:
    """The best epoch, the earliest of equals."""
    best = history[0]
    for record in history[1:]:
        best = record if record.better_than(best) else best
    return best


@dataclass(frozen=True, kw_only=True)
class TrainingFiles:
    """Paths of everything that one run writes.

    Attributes:
        checkpoint: The best epoch, once the run has ended.
        best: The best epoch so far, while the run goes on.
        last: The last epoch.
        history: One JSON object per epoch and line.
        curve: PNG of losses and accuracies by epoch.
        state: All that `--resume` needs.
    """

    checkpoint: Path
    best: Path
    last: Path
    history: Path
    curve: Path
    state: Path

    @classmethod
    def beside(cls, checkpoint: Path) -> TrainingFiles:
        """Name the files after the checkpoint and make its folder.

        Raises:
            UsageError: Not a .safetensors name.
            OutputError: The folder cannot be made.
        """
        if checkpoint.suffix != ".safetensors":
            raise UsageError(
                f"cannot write a checkpoint to {checkpoint}: expected a name that ends in "
                f".safetensors, e.g. {checkpoint.with_suffix('.safetensors')}"
            )
        try:
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make {checkpoint.parent}: {error.strerror}") from error
        return cls(
            checkpoint=checkpoint,
            best=checkpoint.with_suffix(".best.safetensors"),
            last=checkpoint.with_suffix(".last.safetensors"),
            history=checkpoint.with_suffix(".history.jsonl"),
            curve=checkpoint.with_suffix(".curve.png"),
            state=checkpoint.with_suffix(".state.pt"),
        )


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Everything that the epochs still to come depend on.

    Random numbers depend on the seed and the epoch alone, so there is no generator to keep.

    Attributes:
        origin: What must be the same for the run to go on: settings, config and data.
        history: The epochs so far.
        model: state_dict of the model after them.
        optimizer: state_dict of the optimizer after them.
    """

    origin: Mapping[str, Any]
    history: Sequence[EpochRecord]
    model: Mapping[str, Any]
    optimizer: Mapping[str, Any]


def write_history(path: Path, history: Sequence[EpochRecord]) -> None:
    """Write one JSON object per epoch and line."""
    lines = [json.dumps(dataclasses.asdict(record)) + "\n" for record in history]
    path.write_text("".join(lines), encoding="utf-8")


def save_state(path: Path, state: TrainingState) -> None:
    """Write the state, replacing an older one in one step.

    Raises:
        OSError: It cannot be written.
    """
    content = {
        "schema": STATE_SCHEMA,
        "origin": dict(state.origin),
        "history": [dataclasses.asdict(record) for record in state.history],
        "model": dict(state.model),
        "optimizer": dict(state.optimizer),
    }
    temporary = path.with_suffix(".pt.part")
    try:
        torch.save(content, temporary)
    except RuntimeError as error:  # torch's own file writer
        raise OSError(f"{temporary}: {error}") from error
    temporary.replace(path)


def load_state(path: Path, *, origin: Mapping[str, Any]) -> TrainingState:
    """Read the state of a run that is to go on.

    Args:
        path: File written by `save_state`.
        origin: Settings, config and data of the run that asks, flat.

    Raises:
        UsageError: There is no such file, or it belongs to a run with another origin.
        CheckpointError: The file is damaged or not a state.
    """
    if not path.is_file():
        raise UsageError(
            f"cannot resume: there is no {path}; expected the state of an earlier run with the "
            "same output; start without --resume"
        )
    try:
        if not zipfile.is_zipfile(path):  # what torch.save writes; other pickles are not opened
            raise ValueError("not a zip archive")
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["schema"] != STATE_SCHEMA:
            raise ValueError(f"schema {content['schema']}")
        state = TrainingState(
            origin=content["origin"],
            history=[EpochRecord(**record) for record in content["history"]],
            model=content["model"],
            optimizer=content["optimizer"],
        )
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ValueError) as e:
        raise CheckpointError(
            f"cannot resume: {path} is not a training state that this version wrote "
            f"({str(e).splitlines()[0] if str(e) else type(e).__name__}); start without --resume"
        ) from e
    changed = [
        f"  {name}: {state.origin.get(name)!r} then, {value!r} now"
        for name, value in origin.items()
        if state.origin.get(name) != value
    ]
    if changed:
        raise UsageError(
            f"cannot resume {path}: it belongs to a run with other settings or data\n"
            + "\n".join(changed)
            + "\nask for the same, or start without --resume"
        )
    return state

"""Files of a training run: their names, the history, and the state that `--resume` reads.

Next to the checkpoint `digits.safetensors` stand `digits.history.jsonl` and `digits.state.pt`, and
until the run ends `digits.best.safetensors`. `digits.last.safetensors` and `digits.curve.png` are
written at the end.
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
from vit_export.training.epoch_record import EpochRecord

STATE_SCHEMA = 1


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
    def beside(cls, checkpoint: Path) -> TrainingFiles:
        """Name the files after the checkpoint.

        Raises:
            UsageError: The name does not end in .safetensors.
        """
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
        """Make the folder of the files.

        Raises:
            OutputError: The folder cannot be made.
        """
        folder = self.checkpoint.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the folder {folder}: {error.strerror}") from error


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """What the next epochs depend on; random numbers follow from the seed and the epoch."""

    origin: Mapping[str, Any]  # settings, config and data, which must be the same to resume
    history: Sequence[EpochRecord]  # the epochs so far
    model: Mapping[str, Any]  # state_dict; empty once the run has ended and its files hold it
    optimizer: Mapping[str, Any]  # state_dict; empty likewise


def write_history(path: Path, history: Sequence[EpochRecord]) -> None:
    """Write one JSON object per epoch and line."""
    lines = [json.dumps(dataclasses.asdict(record)) + "\n" for record in history]
    path.write_text("".join(lines), encoding="utf-8")


def save_state(path: Path, state: TrainingState) -> None:
    """Write the state, replacing an older one in one step.

    Raises:
        OSError: The file cannot be written.
    """
    history = [dataclasses.asdict(record) for record in state.history]
    content = {"schema": STATE_SCHEMA, **vars(state), "history": history}
    temporary = path.with_suffix(".pt.part")
    try:
        torch.save(content, temporary)
    except RuntimeError as error:  # how torch's own file writer fails
        raise OSError(f"{temporary}: {error}") from error
    temporary.replace(path)


def load_state(path: Path, *, origin: Mapping[str, Any]) -> TrainingState:
    """Read the state of a run to resume, which must have this origin.

    Raises:
        UsageError: No such file, or it belongs to a run with another origin.
        CheckpointError: The file is damaged or not a state.
    """
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
        parts = {name: content[name] for name in ("origin", "model", "optimizer")}
        state = TrainingState(history=history, **parts)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ValueError) as e:
        raise CheckpointError(
            f"cannot resume: {path} is not a training state that this version wrote "
            f"({str(e).splitlines()[0] if str(e) else type(e).__name__})",
            hint="start without --resume",
        ) from e
    changed = [
        f"  {name}: {state.origin.get(name)!r} then, {value!r} now"
        for name, value in origin.items()
        if state.origin.get(name) != value
    ]
    if changed:
        raise UsageError(
            f"cannot resume {path}: it belongs to a run with other settings or data\n"
            + "\n".join(changed),
            hint="use the same settings and data, or start without --resume",
        )
    return state

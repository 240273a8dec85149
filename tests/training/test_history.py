"""The files of a run and the state that it is resumed from."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from vit_export.errors import CheckpointError, OutputError, UsageError
from vit_export.training.history import (
    EpochRecord,
    TrainingFiles,
    best_of,
    load_state,
    save_state,
)

ORIGIN = {"seed": 3, "labels": ("cat", "dog")}


def record(epoch: int, accuracy: float = 0.5, loss: float = 1.0) -> EpochRecord:
    """An epoch of this accuracy and loss."""
    return EpochRecord(
        epoch=epoch,
        learning_rate=0.1,
        train_loss=loss,
        train_accuracy=accuracy,
        val_loss=loss,
        val_accuracy=accuracy,
        time_s=1.5,
    )


def state() -> dict[str, Any]:
    """The state after two epochs."""
    return {
        "origin": ORIGIN,
        "history": [dataclasses.asdict(record(1)), dataclasses.asdict(record(2, 0.75))],
        "model": {"weight": torch.arange(6.0)},
        "optimizer": {"state": {0: {"step": torch.tensor(2.0)}}, "param_groups": [{"lr": 0.1}]},
    }


def test_the_best_epoch_has_the_most_right_then_the_smaller_loss_then_came_first() -> None:
    """In this order of importance."""
    history = [record(1, 0.5, 0.1), record(2, 0.9, 0.8), record(3, 0.9, 0.7), record(4, 0.9, 0.7)]
    assert best_of(history).epoch == 3


def test_a_saved_state_is_loaded_unchanged(tmp_path: Path) -> None:
    """No temporary file is left."""
    path = tmp_path / "a.state.pt"
    save_state(path, state())
    history, model, optimizer = load_state(path, origin=ORIGIN)
    assert history == [record(1), record(2, 0.75)]
    assert torch.equal(model["weight"], torch.arange(6.0))
    assert optimizer == state()["optimizer"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_with_other_settings_is_not_resumed(tmp_path: Path) -> None:
    """Every difference is named with both values."""
    save_state(tmp_path / "s.pt", state())
    with pytest.raises(UsageError) as caught:
        load_state(tmp_path / "s.pt", origin={"seed": 4, "labels": ("cat",)})
    assert "seed: 3 then, 4 now" in str(caught.value)
    assert "labels: ('cat', 'dog') then, ('cat',) now" in str(caught.value)


def test_resuming_without_a_state_is_an_error(tmp_path: Path) -> None:
    """Training from the start instead would be silent."""
    with pytest.raises(UsageError, match="found no"):
        load_state(tmp_path / "s.pt", origin=ORIGIN)


class Payload:
    """What a hostile pickle runs when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran-by-a-pickle"),)


def test_a_state_that_is_damaged_foreign_or_hostile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no code in it runs."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "s.pt"
    save_state(path, state())
    whole = path.read_bytes()
    torch.save({"model": {}}, path)
    foreign = path.read_bytes()
    torch.save({"schema": 99}, path)
    newer = path.read_bytes()
    torch.save(Payload(), path)
    hostile = path.read_bytes()
    for content in (b"", b"text", whole[:-50], foreign, newer, hostile, pickle.dumps(Payload())):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="not a training state"):
            load_state(path, origin=ORIGIN)
    assert not Path("ran-by-a-pickle").exists()


def test_files_are_named_after_the_checkpoint_and_its_folder_is_made(tmp_path: Path) -> None:
    """Dots in the name stay; the folder is made when that is asked for."""
    files = TrainingFiles.beside(tmp_path / "new" / "v1.2.safetensors")
    assert not (tmp_path / "new").exists()
    files.make_folder()
    assert (tmp_path / "new").is_dir()
    assert {path.name for path in dataclasses.astuple(files)} == {
        "v1.2.safetensors",
        "v1.2.best.safetensors",
        "v1.2.last.safetensors",
        "v1.2.history.jsonl",
        "v1.2.curve.png",
        "v1.2.state.pt",
    }


def test_a_checkpoint_name_or_folder_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    """Before hours of training, not after."""
    with pytest.raises(UsageError, match=r"\.safetensors"):
        TrainingFiles.beside(tmp_path / "model.pth")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        TrainingFiles.beside(tmp_path / "file" / "model.safetensors").make_folder()

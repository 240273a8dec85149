"""Training on real scanned digits, with a model small enough for seconds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import Tensor

from vit_export.errors import CheckpointError, OutputError, UsageError, VitExportError
from vit_export.images.dataset import LabelledImages
from vit_export.model.vit import VisionTransformer
from vit_export.progress import Progress, silent
from vit_export.training import loop
from vit_export.training.history import EpochRecord, TrainingFiles, best_of
from vit_export.training.loop import train
from vit_export.training.predict import predict_logits
from vit_export.training.recipe import Recipe, initial_model
from vit_export.training.split import split_data
from vit_export.variants import get_variant

RECIPE = Recipe(epochs=3, batch_size=32, warmup_epochs=1, learning_rate=3e-3, shift=0.05, seed=1)


@dataclasses.dataclass
class Trained:
    """What a run left."""

    history: list[EpochRecord]
    files: TrainingFiles

    @property
    def best(self) -> EpochRecord:
        return best_of(self.history)


Train = Callable[..., Trained]


@pytest.fixture(scope="module")
def digits() -> LabelledImages:
    """The first 300 of scikit-learn's scanned digits, 8 x 8 px."""
    bunch = load_digits()
    return LabelledImages(
        images=(bunch.images[:300, :, :, None] * 255 / 16).astype(np.uint8),
        targets=bunch.target[:300].astype(np.int64),
        labels=tuple("0123456789"),
        sha256="300 digits",
    )


def tiny(**fields: Any) -> VisionTransformer:
    """Two blocks on 8 px, with stochastic depth and dropout: both draw random numbers."""
    overrides = {"img_size": 8, "patch_size": 2, "depth": 2, "embed_dim": 32, "num_heads": 4,
                 "drop_path_rate": 0.1, "drop_rate": 0.1, **fields}  # fmt: skip
    return initial_model(get_variant("mnist", **overrides), seed=0)


@pytest.fixture
def run(tmp_path: Path, digits: LabelledImages) -> Train:
    """Train a tiny model on the digits, with some arguments and hyperparameters changed."""

    def train_with(**changes: Any) -> Trained:
        names = {field.name for field in dataclasses.fields(Recipe)}
        fields = {name: changes.pop(name) for name in list(changes) if name in names}
        recipe = dataclasses.replace(RECIPE, **fields)
        data, validation = changes.pop("data", digits), changes.pop("validation", None)
        split = split_data(data, validation, fraction=0.2, seed=recipe.seed)
        model = changes.pop("model", None) or tiny()
        files = TrainingFiles.beside(tmp_path / changes.pop("output", "digits.safetensors"))
        options = {"resume": False, "progress": silent,
                   "epoch_done": lambda _: None}  # fmt: skip
        return Trained(train(model, split, recipe, files, **{**options, **changes}), files)

    return train_with


def without_times(history: list[EpochRecord]) -> list[EpochRecord]:
    """The records without what no two runs share."""
    return [dataclasses.replace(record, time_s=0.0) for record in history]


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Equal to the bit."""
    return first.keys() == second.keys() and all(
        torch.equal(tensor, second[name]) for name, tensor in first.items()
    )


def test_training_learns_real_digits(run: Train, digits: LabelledImages) -> None:
    """The loss falls, and far more than one in ten images is correct after seconds."""
    model = tiny(drop_rate=0.0)
    result = run(model=model, epochs=6, batch_size=8, shift=0.0, rotation_degrees=0.0)
    assert result.history[-1].train_loss < 0.7 * result.history[0].train_loss
    assert result.best.val_accuracy > 0.5
    rows = split_data(digits, None, fraction=0.2, seed=1).validation_rows
    logits = predict_logits(model, digits.images, rows=rows, batch_size=8)
    correct = logits.argmax(dim=1).numpy() == digits.targets[rows]
    assert correct.mean() == pytest.approx(result.best.val_accuracy)


def test_validation_images_may_be_a_data_set_of_their_own(
    run: Train, digits: LabelledImages
) -> None:
    """Resuming checks both sets."""
    other = dataclasses.replace(
        digits, images=digits.images[:30], targets=digits.targets[:30], sha256="30 digits"
    )
    run(validation=other, epochs=1)
    changed = dataclasses.replace(other, sha256="others")
    with pytest.raises(UsageError, match=r"data sha256: '300 digits\+30 digits' then"):
        run(validation=changed, epochs=1, resume=True)


@pytest.mark.parametrize("variant", ["deit_ti", "ti16"])
def test_any_variant_trains_on_any_number_of_classes(run: Train, variant: str) -> None:
    """Two tokens and two heads, colours, images that are not square."""
    rng = np.random.default_rng(0)
    targets = np.arange(40) % 2
    shades = (targets * 120)[:, None, None, None] + rng.integers(0, 100, (40, 16, 32, 3))
    data = LabelledImages(images=shades.astype(np.uint8), targets=targets, labels=("dark", "light"))
    config = get_variant(
        variant, img_size=(16, 32), depth=1, embed_dim=24, num_heads=2, num_classes=2
    )
    model = initial_model(config, seed=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = run(model=model, data=data, batch_size=8, epochs=6)
    assert result.best.val_accuracy == 1.0
    after = load_file(result.files.last)
    assert not [name for name in before if torch.equal(before[name], after[name])]


def test_the_same_seed_gives_the_same_weights_and_another_one_others(run: Train) -> None:
    """To the bit, whatever the global generator was left at."""
    runs = []
    for position, seed in enumerate((1, 1, 2)):
        torch.manual_seed(position)
        result = run(seed=seed, epochs=2)
        runs.append((load_file(result.files.last), without_times(result.history)))
    assert same(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert not same(runs[0][0], runs[2][0])


def test_every_epoch_draws_random_numbers_of_its_own(run: Train) -> None:
    """With weights that stand still, two epochs differ by order, shifts and dropout alone."""
    first, second = run(epochs=2, learning_rate=1e-12).history
    assert first.train_loss != pytest.approx(second.train_loss, rel=1e-5)


def test_training_leaves_the_global_generator_as_it_was(run: Train) -> None:
    """A caller's own random numbers do not depend on having trained."""
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    run(epochs=1)
    assert torch.equal(torch.rand(3), expected)


class StopError(Exception):
    """What a test interrupts training with."""


def stop_after(epoch: int) -> Progress:
    """Interrupt a run in the middle of the epoch after this one."""

    def progress(stage: str, done: int = 0, total: int = 0) -> None:
        if stage.startswith(f"epoch {epoch + 1}/") and done == 2:
            raise StopError

    return progress


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_a_resumed_run_ends_as_an_uninterrupted_one(
    run: Train, tmp_path: Path, optimizer: str
) -> None:
    """The same weights to the bit, the same history, the same best epoch."""
    whole = run(optimizer=optimizer, output="whole.safetensors")
    with pytest.raises(StopError):
        run(optimizer=optimizer, progress=stop_after(2))
    assert not (tmp_path / "digits.safetensors").exists()
    # another start than that of the first run: the state alone decides
    resumed = run(optimizer=optimizer, model=tiny(num_heads=4), resume=True)
    assert without_times(resumed.history) == without_times(whole.history)
    for name in ("checkpoint", "last"):
        first, second = (load_file(getattr(run.files, name)) for run in (whole, resumed))
        assert same(first, second)


def test_a_run_that_has_ended_is_resumed_without_training(run: Train, tmp_path: Path) -> None:
    """It returns the same result, and its files stay as they are."""
    first = run()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    calls: list[EpochRecord] = []
    again = run(resume=True, epoch_done=calls.append)
    assert again.history == first.history
    assert not calls
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_epoch_writes_the_weights_once_and_a_finished_run_keeps_no_optimizer(
    run: Train, tmp_path: Path
) -> None:
    """The state holds weights and optimizer, the best weights are written when they change."""
    sizes: list[dict[str, int]] = []

    def epoch_done(_: EpochRecord) -> None:
        sizes.append({path.name: path.stat().st_size for path in tmp_path.iterdir()})

    run(epochs=2, epoch_done=epoch_done)
    assert all(
        names.keys() == {"digits.best.safetensors", "digits.history.jsonl", "digits.state.pt"}
        for names in sizes
    )
    weights = (tmp_path / "digits.safetensors").stat().st_size
    assert sizes[-1]["digits.state.pt"] > 2.5 * weights
    assert (tmp_path / "digits.state.pt").stat().st_size < weights / 10
    assert {path.name for path in tmp_path.iterdir()} == {
        "digits.safetensors", "digits.last.safetensors", "digits.history.jsonl", "digits.state.pt",
    }  # fmt: skip


@pytest.mark.parametrize("function", ["save_checkpoint", "save_state"])
def test_a_run_interrupted_while_it_finishes_can_be_resumed(
    run: Train, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    """Before the best weights are published, and after."""
    files = run(epochs=1).files
    expected = load_file(files.checkpoint), load_file(files.last)
    for path in (files.last, files.state, files.checkpoint):
        path.unlink()
    original = getattr(loop, function)

    def stop(first: Any, second: Any, **options: Any) -> None:
        if second == files.last or (first == files.state and second["model"] == {}):
            raise StopError
        original(first, second, **options)

    monkeypatch.setattr(loop, function, stop)
    with pytest.raises(StopError):
        run(epochs=1)
    monkeypatch.undo()
    run(epochs=1, resume=True)
    for path, weights in zip((files.checkpoint, files.last), expected, strict=True):
        assert same(load_file(path), weights)


def test_resuming_with_other_settings_or_data_is_refused(
    run: Train, digits: LabelledImages
) -> None:
    """Each difference is named."""
    run(epochs=1)
    with pytest.raises(UsageError, match=r"learning_rate: 0\.003 then, 0\.1 now"):
        run(epochs=1, learning_rate=0.1, resume=True)
    with pytest.raises(UsageError, match="data sha256: '300 digits' then, 'others' now"):
        run(epochs=1, data=dataclasses.replace(digits, sha256="others"), resume=True)


def test_resuming_without_the_best_checkpoint_is_refused(run: Train, tmp_path: Path) -> None:
    """Otherwise a later and worse epoch would pass for the best."""
    with pytest.raises(StopError):
        run(progress=stop_after(1))
    (tmp_path / "digits.best.safetensors").unlink()
    (tmp_path / "digits.safetensors").write_bytes(b"of an earlier run")
    with pytest.raises(CheckpointError, match=r"best\.safetensors is missing"):
        run(resume=True)


def test_patience_stops_a_run_that_gets_no_better(run: Train) -> None:
    """With a learning rate of almost nothing the first epochs are as good as any."""
    result = run(epochs=30, patience=2, learning_rate=1e-12)
    assert len(result.history) == result.best.epoch + 2
    assert len(result.history) < 30


def test_a_loss_that_is_not_finite_stops_with_the_reason(run: Train, tmp_path: Path) -> None:
    """Epoch, step, learning rate and what to try; an older checkpoint stays."""
    (tmp_path / "digits.safetensors").write_bytes(b"an older one")
    with pytest.raises(VitExportError) as caught:
        run(learning_rate=1e30, clip_grad_norm=1e30)
    message = str(caught.value)
    assert "the loss is nan in epoch 1, step 2 of 8, at learning rate 2.5e+29" in message
    assert "--learning-rate 1e+29" in message
    assert (tmp_path / "digits.safetensors").read_bytes() == b"an older one"


def test_weights_that_break_in_the_last_step_of_an_epoch_are_found(run: Train) -> None:
    """By the loss of validation: there is no later step to show it."""
    with pytest.raises(VitExportError, match="the loss is nan in the validation of epoch 1,"):
        run(batch_size=1000, learning_rate=1e30, clip_grad_norm=1e30)


def test_the_checkpoint_holds_config_labels_and_the_best_weights(run: Train) -> None:
    """`--weights` needs nothing but the file."""
    result = run()
    assert not result.files.best.exists()
    with safe_open(result.files.checkpoint, "pt") as file:
        about = json.loads(file.metadata()["vit_export"])
    assert about["labels"] == list("0123456789")
    assert about["config"]["embed_dim"] == 32
    assert load_file(result.files.checkpoint).keys() == tiny().state_dict().keys()


def test_a_history_is_written(run: Train) -> None:
    """One line per epoch, equal to the result."""
    result = run(epochs=2)
    lines = result.files.history.read_text().splitlines()
    assert [json.loads(line) for line in lines] == [dataclasses.asdict(r) for r in result.history]


def test_progress_is_called_for_every_step_and_every_finished_epoch(run: Train) -> None:
    """Once the files of an epoch are there, so that an interruption loses nothing."""
    steps: list[tuple[str, int, int]] = []
    epochs: list[EpochRecord] = []
    result = run(epochs=2, progress=lambda *call: steps.append(call), epoch_done=epochs.append)
    assert [(stage[:9], done, total) for stage, done, total in steps] == [
        (f"epoch {epoch}/2", step, 8) for epoch in (1, 2) for step in range(1, 9)
    ]
    assert epochs == result.history
    last = epochs[-1]
    means = f"loss {last.train_loss:.4f}  accuracy {100 * last.train_accuracy:.1f} %"
    assert steps[-1][0] == f"epoch 2/2  {means}"


def test_a_file_that_cannot_be_written_is_named(run: Train, tmp_path: Path) -> None:
    """A folder stands where a file is to be written."""
    (tmp_path / "digits.history.jsonl").mkdir()
    with pytest.raises(OutputError, match=r"digits\.history\.jsonl"):
        run(epochs=1)


def test_a_closed_pipe_of_the_progress_is_not_blamed_on_the_disk(run: Train) -> None:
    """As of `vit-export finetune ... 2>&1 | head`."""

    def closed(*_: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    for callback in ("progress", "epoch_done"):
        with pytest.raises(BrokenPipeError):
            run(epochs=1, **{callback: closed})


def test_a_batch_that_does_not_fit_in_memory_is_an_error_with_a_smaller_one(run: Train) -> None:
    """Torch itself fails: its allocator is asked for more than any machine has."""
    model = tiny()
    model.blocks[0].register_forward_hook(lambda *_: torch.empty(2**60))
    with pytest.raises(VitExportError, match="out of memory with batches of 32 images") as caught:
        run(model=model)
    assert caught.value.hint == "try --batch-size 16"


def test_validation_that_does_not_fit_in_memory_is_an_error_with_a_smaller_batch(
    run: Train,
) -> None:
    """Validation computes as many images at once as training, and no more."""
    model = tiny()
    sizes: list[int] = []

    def fill(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not module.training:
            sizes.append(len(inputs[0]))
            torch.empty(2**60)

    model.register_forward_pre_hook(fill)
    with pytest.raises(VitExportError, match="try --batch-size 16"):
        run(model=model)
    assert sizes == [32]

"""What training starts from and writes to, and what is refused before any work."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image

from vit_export.checkpoint.load import load_checkpoint
from vit_export.checkpoint.own import save_checkpoint
from vit_export.errors import CheckpointError, DataError, ProviderError, UsageError
from vit_export.model.vit import create_model
from vit_export.training import run as training
from vit_export.training.recipe import TrainingSettings
from vit_export.training.run import Start, train
from vit_export.variants import get_variant

SMALL = {"embed_dim": 32, "depth": 1, "num_heads": 2}
ONCE = TrainingSettings(epochs=1)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every image that was brought to the model's size."""
    images: list[object] = []
    resize = training.resize_and_crop

    def counted(image, preprocess):
        images.append(image)
        return resize(image, preprocess)

    monkeypatch.setattr(training, "resize_and_crop", counted)
    return images


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every checkpoint that was loaded."""
    sources: list[object] = []

    def counted(source, **options):
        sources.append(source)
        return load_checkpoint(source, **options)

    monkeypatch.setattr(training, "load_checkpoint", counted)
    return sources


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty scanned digits of 8 x 8 px."""
    path = tmp_path_factory.mktemp("digits") / "digits.csv"
    images, targets = sklearn.datasets.load_digits(return_X_y=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", *(f"pixel{i}" for i in range(64))])
        pixels = np.round(images[:40] * 255 / 16).astype(int)
        writer.writerows([t, *row] for t, row in zip(targets[:40], pixels, strict=True))
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A checkpoint for ten classes."""
    path = tmp_path / "w" / "model.safetensors"
    path.parent.mkdir()
    save_checkpoint(create_model(get_variant("mnist", **SMALL), seed=1), path)
    return path


@pytest.mark.parametrize(
    ("start", "name"),
    [
        ({"variant": "mnist"}, "vit_mnist_28"),
        ({"weights": "model.safetensors"}, "model.finetuned"),
        ({"variant": "mnist", "weights": "a/vit.v2.pth"}, "vit.v2.finetuned"),
        ({"weights": Path("a/model.safetensors.index.json")}, "model.finetuned"),
        ({"weights": "hf:owner/some-vit"}, "some-vit.finetuned"),
        ({"weights": "hf:owner/vit-v1.5@main/x"}, "vit-v1.5.finetuned"),
        ({"variant": "b16", "weights": "hub"}, "{hub}.finetuned"),
    ],
    ids=lambda value: str(value),
)
def test_the_default_output_is_named_after_variant_or_weights(start, name):
    """Never after a file that every hub calls the same, unless it is told from it."""
    hub = get_variant("b16").hub.rpartition("/")[2]
    expected = Path(f"{name.format(hub=hub)}.safetensors")
    assert Start(**start).default_output() == expected


def test_a_folder_of_weights_names_the_output(tmp_path, monkeypatch):
    """The folder itself, also as a dot, with all of a name that looks like a suffix."""
    folder = tmp_path / "vit-v1.5"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for weights in (folder, "."):
        name = Start(weights=weights).default_output()
        assert name == Path("vit-v1.5.finetuned.safetensors")


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ({}, "say what to train"),
        ({"variant": "mnist", "reset_head": True}, "--reset-head is for --weights"),
        ({"variant": "mnist", "overrides": {"num_classes": "7"}}, "the data say how many"),
    ],
    ids=["nothing", "reset-head", "num_classes"],
)
def test_a_start_that_contradicts_itself_is_refused(start, words):
    """On construction."""
    with pytest.raises(UsageError, match=words):
        Start(**start)


def test_weights_are_loaded_once(digits, weights, tmp_path, loads):
    """Their preparation and their tensors come from one reading."""
    trained = train(Start(weights=weights), digits, tmp_path / "m.safetensors", settings=ONCE)
    assert loads == [weights]
    assert trained.report is not None
    assert trained.report.reinitialised == ()


def test_reset_head_gives_a_new_head_even_for_as_many_classes(digits, weights, tmp_path):
    """What was asked for is done, and told."""
    start = Start(weights=weights, reset_head=True)
    trained = train(start, digits, tmp_path / "m.safetensors", settings=ONCE)
    assert trained.report is not None
    assert set(trained.report.reinitialised) == {"head.weight", "head.bias"}


def test_what_cannot_work_is_refused_before_an_image_is_decoded(
    digits, weights, tmp_path, decoded, loads
):
    """Paths, device, output and settings; and no weights are loaded either."""
    start, out = Start(weights=weights), tmp_path / "m.safetensors"
    missing = tmp_path / "missing.csv"
    text = tmp_path / "notes.txt"
    text.write_text("no images")
    for error, words, data, output, options in [
        (DataError, "does not exist", missing, out, {}),
        (DataError, "is no folder and no .csv file", text, out, {}),
        (DataError, "missing.csv does not exist", digits, out, {"test": missing}),
        (UsageError, "--predict takes a digits CSV", tmp_path, out, {"test": digits}),
        (UsageError, "expected auto, cpu, cuda", digits, out, {"device": "tpu"}),
        (ProviderError, "cannot train on cuda:99", digits, out, {"device": "cuda:99"}),
        (UsageError, "ends in .safetensors", digits, tmp_path / "m.pt", {}),
        (UsageError, "cannot resume: there is no", digits, out, {"resume": True}),
    ]:
        with pytest.raises(error, match=words):
            train(start, data, output, settings=ONCE, **options)
    assert decoded == []
    assert loads == []


def test_missing_weights_are_an_error_before_an_image_is_decoded(digits, tmp_path, decoded):
    """The file is named."""
    with pytest.raises(CheckpointError, match=r"none\.pth"):
        train(
            Start(weights=tmp_path / "none.pth"), digits, tmp_path / "m.safetensors", settings=ONCE
        )
    assert decoded == []


def test_resuming_with_other_settings_is_refused_before_an_image_is_decoded(
    digits, tmp_path, decoded
):
    """The setting is named, then and now."""
    start, out = Start(variant="mnist", overrides=SMALL), tmp_path / "m.safetensors"
    train(start, digits, out, settings=ONCE)
    decoded.clear()
    with pytest.raises(UsageError, match="batch_size: 32 then, 8 now"):
        train(start, digits, out, settings=TrainingSettings(epochs=1, batch_size=8), resume=True)
    assert decoded == []


@pytest.mark.parametrize("given", ["file", "folder", "index", "link"])
def test_training_never_replaces_what_it_starts_from(given, digits, weights, tmp_path):
    """However file and output are spelled."""
    folder = weights.parent
    sources = {
        "file": weights,
        "folder": folder,
        "index": folder / "model.safetensors.index.json",
        "link": tmp_path / "link.safetensors",
    }
    sources["index"].write_text("{}")
    sources["link"].symlink_to(weights)
    before = weights.read_bytes()
    with pytest.raises(UsageError, match="would replace"):
        train(Start(weights=sources[given]), digits, folder / ".." / "w" / "model.safetensors",
              settings=ONCE)  # fmt: skip
    assert weights.read_bytes() == before


def test_training_never_replaces_its_start_by_the_best_epoch_so_far(digits, weights, tmp_path):
    """`m.best.safetensors` is a file that the training of `m.safetensors` writes."""
    best = weights.rename(tmp_path / "m.best.safetensors")
    before = best.read_bytes()
    with pytest.raises(UsageError, match="would replace"):
        train(Start(weights=best), digits, tmp_path / "m.safetensors", settings=ONCE)
    assert best.read_bytes() == before


def test_a_new_name_in_the_weights_folder_is_fine(digits, weights):
    """Nothing is replaced."""
    output = weights.parent / "new.safetensors"
    train(Start(weights=weights.parent), digits, output, settings=ONCE)
    assert output.is_file()


def test_a_folder_of_class_folders(tmp_path):
    """The classes are the folders' names."""
    rng = np.random.default_rng(0)
    for label, level in (("dark", 60), ("light", 190)):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(10):
            pixels = rng.integers(level - 30, level + 30, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{number}.png")
    output = tmp_path / "m.safetensors"
    start = Start(variant="mnist", overrides=SMALL)
    trained = train(start, tmp_path / "data", output, settings=ONCE)
    assert trained.model.config.num_classes == 2
    assert load_checkpoint(output).labels == ("dark", "light")

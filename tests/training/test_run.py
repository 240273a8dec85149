"""What training starts from and writes to, and what is refused before any work."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image
from safetensors.torch import load_file, save_file

from vit_export.checkpoint.load import load_checkpoint
from vit_export.checkpoint.own import save_checkpoint
from vit_export.errors import CheckpointError, DataError, ProviderError, UsageError
from vit_export.images import dataset, digits_csv
from vit_export.model.vit import create_model
from vit_export.training import run as training
from vit_export.training.recipe import Recipe
from vit_export.training.run import FinetuneSettings, finetune
from vit_export.variants import get_variant

SMALL = {"embed_dim": 32, "depth": 1, "num_heads": 2}
ONCE = Recipe(epochs=1)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every image that was brought to the model's size."""
    images: list[object] = []
    resize = dataset.resize_and_crop

    def counted(image, preprocess):
        images.append(image)
        return resize(image, preprocess)

    for module in (dataset, digits_csv):
        monkeypatch.setattr(module, "resize_and_crop", counted)
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
    """Weights of a hub are all called model.safetensors: the repository gives the name."""
    hub = get_variant("b16").hub.rpartition("/")[2]
    expected = Path(f"{name.format(hub=hub)}.safetensors")
    assert FinetuneSettings(**start).default_output() == expected


def test_a_folder_of_weights_names_the_output(tmp_path, monkeypatch):
    """Also where it is `.`; a part of its name that looks like a suffix stays."""
    folder = tmp_path / "vit-v1.5"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for weights in (folder, "."):
        name = FinetuneSettings(weights=weights).default_output()
        assert name == Path("vit-v1.5.finetuned.safetensors")


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ({}, "nothing to train"),
        ({"variant": "mnist", "reset_head": True}, "--reset-head needs --weights"),
        ({"variant": "mnist", "overrides": {"num_classes": "7"}}, "comes from the data"),
    ],
    ids=["nothing", "reset-head", "num_classes"],
)
def test_settings_that_contradict_each_other_are_an_error(start, words):
    """When they are made."""
    with pytest.raises(UsageError, match=words):
        FinetuneSettings(**start)


@pytest.mark.parametrize("reset_head", [False, True])
def test_weights_are_loaded_once(digits, weights, tmp_path, loads, reset_head):
    """A new head replaces that of the file even where the number of classes is the same."""
    settings = FinetuneSettings(weights=weights, reset_head=reset_head, recipe=ONCE)
    result = finetune(digits, tmp_path / "m.safetensors", settings=settings)
    assert loads == [weights]
    assert result.report is not None
    head = {"head.weight", "head.bias"} if reset_head else set()
    assert set(result.report.reinitialised) == head


def test_the_checkpoint_prepares_images_as_the_training_did(digits, weights, tmp_path):
    """Images were squashed, as the file beside the weights requires: so must the artifact do."""
    start = tmp_path / "timm" / "model.safetensors"
    start.parent.mkdir()
    save_file(load_file(weights), start)
    preparation = {"crop_mode": "squash", "mean": [0.2], "std": [0.3]}
    about = {"model_args": {"num_heads": 2}, "pretrained_cfg": preparation}
    (start.parent / "config.json").write_text(json.dumps(about))
    output = tmp_path / "m.safetensors"
    finetune(digits, output, settings=FinetuneSettings(weights=start, recipe=ONCE))
    assert load_checkpoint(output).preprocess == load_checkpoint(start).preprocess
    assert load_checkpoint(output).preprocess.crop_mode == "squash"


def test_errors_in_paths_device_and_settings_come_before_any_work(
    digits, weights, tmp_path, decoded, loads
):
    """No image is decoded, no checkpoint is loaded and no folder is made."""
    out = tmp_path / "new" / "m.safetensors"
    missing = tmp_path / "missing.csv"
    text = tmp_path / "notes.txt"
    text.write_text("no images")
    for error, words, data, output, fields in [
        (DataError, "does not exist", missing, out, {}),
        (DataError, "is not a folder and not a .csv file", text, out, {}),
        (DataError, "missing.csv does not exist", digits, out, {"predict": missing}),
        (UsageError, "--predict takes a digits CSV", tmp_path, out, {"predict": digits}),
        (UsageError, "expected auto, cpu, cuda", digits, out, {"device": "tpu"}),
        (ProviderError, "cannot train on cuda:99", digits, out, {"device": "cuda:99"}),
        (UsageError, "ends in .safetensors", digits, tmp_path / "m.pt", {}),
        (UsageError, "cannot resume: found no", digits, out, {"resume": True}),
    ]:
        settings = FinetuneSettings(weights=weights, recipe=ONCE, **fields)
        with pytest.raises(error, match=words):
            finetune(data, output, settings=settings)
    assert decoded == []
    assert loads == []
    assert not out.parent.exists()


def test_missing_weights_are_an_error_before_an_image_is_decoded(digits, tmp_path, decoded):
    """The file is named."""
    settings = FinetuneSettings(weights=tmp_path / "none.pth", recipe=ONCE)
    with pytest.raises(CheckpointError, match=r"none\.pth"):
        finetune(digits, tmp_path / "m.safetensors", settings=settings)
    assert decoded == []


def test_a_wrong_number_of_classes_is_an_error_before_an_image_is_decoded(
    pictures, weights, tmp_path, decoded
):
    """Decoding a large data set takes hours."""
    settings = FinetuneSettings(weights=weights, recipe=ONCE)
    with pytest.raises(UsageError, match=r"10 classes, the data 2 \(\w+, \w+\)") as caught:
        finetune(pictures, tmp_path / "m.safetensors", settings=settings)
    assert "--reset-head" in caught.value.hint
    assert decoded == []


def test_resuming_with_other_settings_is_refused_before_an_image_is_decoded(
    digits, tmp_path, decoded
):
    """The setting is named, with its value in both runs."""
    settings = FinetuneSettings(variant="mnist", overrides=SMALL, recipe=ONCE)
    finetune(digits, tmp_path / "m.safetensors", settings=settings)
    decoded.clear()
    other = dataclasses.replace(settings, recipe=Recipe(epochs=1, batch_size=8), resume=True)
    with pytest.raises(UsageError, match="batch_size: 32 then, 8 now"):
        finetune(digits, tmp_path / "m.safetensors", settings=other)
    assert decoded == []


@pytest.mark.parametrize("given", ["file", "folder", "index", "link"])
def test_training_never_replaces_the_weights_it_starts_from(given, digits, weights, tmp_path):
    """Whatever paths name the weights and the output."""
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
    settings = FinetuneSettings(weights=sources[given], recipe=ONCE)
    with pytest.raises(UsageError, match="would replace"):
        finetune(digits, folder / ".." / "w" / "model.safetensors", settings=settings)
    assert weights.read_bytes() == before


def test_training_never_replaces_its_weights_by_the_best_epoch_so_far(digits, weights, tmp_path):
    """`m.best.safetensors` is a file that the training of `m.safetensors` writes."""
    best = weights.rename(tmp_path / "m.best.safetensors")
    before = best.read_bytes()
    settings = FinetuneSettings(weights=best, recipe=ONCE)
    with pytest.raises(UsageError, match="would replace"):
        finetune(digits, tmp_path / "m.safetensors", settings=settings)
    assert best.read_bytes() == before


def test_a_new_name_in_the_weights_folder_is_allowed(digits, weights):
    """Nothing is replaced."""
    output = weights.parent / "new.safetensors"
    settings = FinetuneSettings(weights=weights.parent, recipe=ONCE)
    finetune(digits, output, settings=settings)
    assert output.is_file()


@pytest.fixture
def pictures(tmp_path):
    """Folders `dark` and `light` of ten pictures each."""
    return write_shades(tmp_path / "data", ("dark", "light"), count=10)


def write_shades(folder, labels, *, count):
    """Write pictures of 12 x 12 px, each label lighter than the one before."""
    rng = np.random.default_rng(0)
    for index, label in enumerate(labels):
        (folder / label).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(30 + 80 * index, 90 + 80 * index, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    return folder


def test_patience_stops_early(pictures, tmp_path):
    """The weights hardly change, so that no epoch is better than the first ones."""
    recipe = Recipe(epochs=9, patience=1, learning_rate=1e-12)
    settings = FinetuneSettings(variant="mnist", overrides=SMALL, recipe=recipe)
    result = finetune(pictures, tmp_path / "m.safetensors", settings=settings)
    assert result.stopped_early
    assert len(result.history) == result.best.epoch + 1 < 9


def test_classes_are_the_folders_of_the_data(pictures, tmp_path):
    """A part of them is held out; a file that is not an image is reported."""
    (pictures / "notes.txt").write_text("about these pictures")
    output = tmp_path / "m.safetensors"
    settings = FinetuneSettings(variant="mnist", overrides=SMALL, recipe=ONCE)
    result = finetune(pictures, output, settings=settings)
    assert (result.num_train, result.num_validation) == (16, 4)
    assert result.ignored == ("notes.txt",)
    loaded = load_checkpoint(output)
    assert (loaded.config.num_classes, loaded.labels) == (2, ("dark", "light"))


def test_a_folder_with_train_and_val_is_trained_on_one_and_validated_on_the_other(tmp_path):
    """Classes are those of the training folder, in its order; `test` is not read."""
    data = tmp_path / "data"
    write_shades(data / "train", ("a", "dark", "light"), count=4)
    write_shades(data / "val", ("dark", "light"), count=3)
    (data / "test").mkdir()
    settings = FinetuneSettings(variant="mnist", overrides=SMALL, recipe=ONCE)
    result = finetune(data, tmp_path / "m.safetensors", settings=settings)
    assert (result.num_train, result.num_validation) == (12, 6)
    assert load_checkpoint(tmp_path / "m.safetensors").labels == ("a", "dark", "light")

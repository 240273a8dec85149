"""`--hf REPO-OR-FOLDER`: classifiers and encoders of transformers, or refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from vit_export.checkpoint.hub import Location
from vit_export.errors import CheckpointError, UsageError, VitExportError
from vit_export.pipeline.libraries.transformers import load_transformers
from vit_export.pipeline.settings import ExportSettings

NAMES = {"id2label": {0: "cat", 1: "dog", 2: "bird"}, "label2id": {"cat": 0, "dog": 1, "bird": 2}}
SMALL = {"image_size": 32, "num_channels": 3}
VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
       "intermediate_size": 64, "patch_size": 8, **SMALL}  # fmt: skip
SQUARE = {"size": {"height": 32, "width": 32}}
CROPPED = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
TOWER = {key: value for key, value in VIT.items() if key != "num_channels"}
TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
        "intermediate_size": 64, "vocab_size": 100}  # fmt: skip


def swin() -> Any:
    return transformers.SwinConfig(
        embed_dim=16, depths=[1, 2], num_heads=[2, 4], window_size=4, patch_size=2, **SMALL, **NAMES
    )


def convnext() -> Any:
    return transformers.ConvNextConfig(
        hidden_sizes=[16, 32], depths=[1, 2], num_stages=2, **SMALL, **NAMES
    )


def clip() -> Any:
    return transformers.CLIPConfig(vision_config=TOWER, text_config=TEXT, projection_dim=24)


MODELS: dict[str, tuple[str, Callable[[], Any], str, dict[str, Any]]] = {
    "swin": ("SwinForImageClassification", swin, "ViTImageProcessorPil", SQUARE),
    "convnext": ("ConvNextForImageClassification", convnext, "ConvNextImageProcessorPil",
                 {"size": {"shortest_edge": 32}, "crop_pct": 0.875}),
    "convnext-384": ("ConvNextForImageClassification", convnext, "ConvNextImageProcessorPil",
                     {"size": {"shortest_edge": 384}}),
    "beit": ("BeitForImageClassification", lambda: transformers.BeitConfig(**VIT, **NAMES),
             "BeitImageProcessorPil", {"size": {"height": 36, "width": 36}, "do_center_crop": True,
                                       "crop_size": {"height": 32, "width": 32}}),
    "dinov2": ("Dinov2Model", lambda: transformers.Dinov2Config(
                   **NAMES, **{k: v for k, v in VIT.items() if k != "intermediate_size"}),
               "BitImageProcessorPil", CROPPED),
    "clip": ("CLIPModel", clip, "CLIPImageProcessorPil", CROPPED),
    "siglip": ("SiglipModel", lambda: transformers.SiglipConfig(
                   vision_config=TOWER, text_config=TEXT), "SiglipImageProcessorPil", SQUARE),
}  # fmt: skip


@pytest.fixture
def make(tmp_path: Path, randomised: Callable[..., nn.Module]) -> Callable[..., tuple[Path, Any]]:
    """Saves a tiny model of a kind, with its image processor, in a folder."""

    def build(kind: str, **processor: Any) -> tuple[Path, Any]:
        name, config, processor_name, fields = MODELS[kind]
        torch.manual_seed(0)
        model = randomised(getattr(transformers, name)(config()))
        folder = tmp_path / kind
        model.save_pretrained(folder)
        getattr(transformers, processor_name)(**{**fields, **processor}).save_pretrained(folder)
        return folder, model

    return build


def pixels(folder: Path) -> Callable[..., Any]:
    """Return the library's own image processor, with Pillow."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    return lambda image: processor(image, return_tensors="np")["pixel_values"][0]


def outputs(kind: str, model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what the original computes, in float64."""
    model = model.double().eval()
    if kind == "clip":
        return lambda x: model.visual_projection(model.vision_model(pixel_values=x).pooler_output)
    if kind == "siglip":
        return lambda x: model.vision_model(pixel_values=x).pooler_output
    if kind == "dinov2":
        return lambda x: model(pixel_values=x).pooler_output
    return lambda x: model(pixel_values=x).logits


@pytest.mark.parametrize("kind", MODELS)
def test_every_kind_of_model_and_processor_is_loaded_as_it_is(kind, make, same_pixels):
    """Outputs and prepared photographs."""
    folder, original = make(kind)
    found = load_transformers(str(folder), weights=None, settings=ExportSettings())
    same_pixels(found.preprocess, pixels(folder))
    images = torch.rand(2, 3, *found.preprocess.size, dtype=torch.float64)
    found.module.double()
    with torch.no_grad():
        ((output, computed),) = found.compute(images).items()
        assert torch.equal(computed, outputs(kind, original)(images))
    assert found.labels == (("cat", "dog", "bird") if output == "logits" else ())


@pytest.mark.parametrize("kind", ["clip", pytest.param("swin", marks=pytest.mark.slow)])
def test_a_folder_of_transformers_becomes_the_same_file(kind, make, command, agrees):
    """Outputs in float64, pixels of photographs, class names, and the hash of the weights."""
    folder, original = make(kind)
    result = command("--hf", folder)
    assert result.exit_code == 0, result.output
    classifies = kind == "swin"
    output = "logits" if classifies else "features"
    manifest = agrees(outputs(kind, original), pixels(folder), output)
    assert manifest["variant"] == kind
    assert manifest["weights"]["source"] == kind
    assert len(manifest["weights"]["sha256"]) == 64
    assert manifest.get("labels", []) == (["cat", "dog", "bird"] if classifies else [])
    if kind == "clip":  # the text tower
        assert "note: " in result.output
        assert "does not use logit_" in result.output


def test_large_images_of_convnext_are_squashed_as_its_processor_does(make):
    """At 384 pixels it does not crop."""
    folder, _ = make("convnext-384")
    found = load_transformers(str(folder), weights=None, settings=ExportSettings())
    assert found.preprocess.size == (384, 384)
    assert found.preprocess.crop_mode == "squash"


def test_a_users_file_is_loaded_into_the_architecture_of_a_folder(make, tmp_path):
    """Every tensor must match."""
    folder, model = make("swin")
    state = load_file(folder / "model.safetensors")
    other = {name: x + 0.1 if x.is_floating_point() else x for name, x in state.items()}
    (folder / "model.safetensors").unlink()
    mine = tmp_path / "mine.safetensors"
    save_file(other, mine)
    found = load_transformers(str(folder), weights=str(mine), settings=ExportSettings())
    assert found.weights.source == "mine.safetensors"
    model.load_state_dict(
        {name: x + 0.1 if x.is_floating_point() else x for name, x in model.state_dict().items()}
    )
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.eval()(pixel_values=images).logits
        assert torch.allclose(found.compute(images)["logits"], expected, atol=1e-5)
    name = "classifier.weight"
    for changes, reason in (
        ({name: None}, r"1 missing:\n  - classifier\.weight"),
        ({"more": torch.ones(1)}, r"1 not in the model:\n  \+ more"),
        ({name: torch.ones(9, 32)}, r"! classifier\.weight: \(9, 32\) in the file"),
    ):
        save_file({k: x for k, x in {**other, **changes}.items() if x is not None}, mine)
        with pytest.raises(CheckpointError, match=reason):
            load_transformers(str(folder), weights=str(mine), settings=ExportSettings())


def test_a_folder_that_lacks_a_tensor_is_refused(make):
    """Transformers itself would start it at random."""
    folder, _ = make("swin")
    path = folder / "model.safetensors"
    state = load_file(path)
    save_file({k: x for k, x in state.items() if k != "classifier.bias"}, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 missing:\n  - classifier\.bias"):
        load_transformers(str(folder), weights=None, settings=ExportSettings())


def test_random_weights_need_the_config_only(make):
    """The seed decides them."""
    folder, _ = make("beit")
    (folder / "model.safetensors").unlink()
    first, second, other = (
        load_transformers(str(folder), weights=None, settings=ExportSettings(
            random_init=True, seed=seed)) for seed in (3, 3, 4)
    )  # fmt: skip
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        results = [found.compute(images)["logits"] for found in (first, second, other)]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert first.weights.random


def test_a_repository_is_downloaded_once_with_its_settings(make, monkeypatch):
    """Through the same door as --weights hf:OWNER/NAME."""
    folder, _ = make("swin")
    asked = []

    def fetch(source: str, *, variant: None, weights: bool) -> Location:
        asked.append((source, weights))
        path = folder / ("model.safetensors" if weights else "config.json")
        return Location(path=path, name="me/swin@1234", stem="swin")

    monkeypatch.setattr("vit_export.pipeline.libraries.transformers.fetch", fetch)
    found = load_transformers("me/swin", weights=None, settings=ExportSettings())
    assert (found.weights.source, found.name) == ("me/swin@1234", "swin")
    load_transformers("me/swin", weights=None, settings=ExportSettings(random_init=True))
    assert asked == [("hf:me/swin", True), ("hf:me/swin", False)]


def test_scores_follow_the_problem_type(make):
    """A multi-label model has sigmoid scores."""
    folder, _ = make("swin")
    config = json.loads((folder / "config.json").read_text())
    config["problem_type"] = "multi_label_classification"
    (folder / "config.json").write_text(json.dumps(config))
    found = load_transformers(str(folder), weights=None, settings=ExportSettings())
    assert found.activation == "sigmoid"


@pytest.mark.parametrize(
    ("kind", "processor"),
    [
        ("swin", {"do_resize": False}),
        ("swin", {"resample": 4}),  # box
        ("dinov2", {"do_center_crop": False}),
    ],
)
def test_a_preparation_that_ours_cannot_express_is_refused(kind, processor, make):
    """Unless the user says how to prepare images."""
    folder, _ = make(kind, **processor)
    with pytest.raises(UsageError, match="prepared in a way that vit-export lacks") as raised:
        load_transformers(str(folder), weights=None, settings=ExportSettings())
    assert "--crop-pct" in raised.value.hint
    given = {"mean": "0.5", "std": "0.5", "crop_pct": 1, "interpolation": "bicubic"}
    found = load_transformers(str(folder), weights=None, settings=ExportSettings(preprocess=given))
    assert found.preprocess.size == (32, 32)


def test_a_flipped_channel_order_is_noticed(make, tmp_path):
    """The fields alone do not say it: the pixels do."""
    folder, _ = make("swin")
    processor = transformers.MobileViTImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    processor.save_pretrained(folder)
    with pytest.raises(UsageError, match=r"differs by .* of 255 levels"):
        load_transformers(str(folder), weights=None, settings=ExportSettings())


def test_an_unknown_preparation_is_refused_until_it_is_given(make):
    """Nothing is invented."""
    folder, _ = make("swin")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UsageError, match=r"how to prepare images for .* is unknown"):
        load_transformers(str(folder), weights=None, settings=ExportSettings())


def test_what_is_no_image_model_is_refused(make, tmp_path):
    """By the class that its config names."""
    folder, _ = make("swin")
    for architectures, reason in (
        (["SwinForMaskedImageModeling"], "is SwinForMaskedImageModeling, expected an image class"),
        ([], "of no class that its config.json names"),
        (["NoSuchModel"], "is NoSuchModel"),
    ):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "architectures": architectures}))
        with pytest.raises(UsageError, match=reason):
            load_transformers(str(folder), weights=None, settings=ExportSettings())


def test_code_of_a_repository_is_not_run(make):
    """Nor is the user asked whether it may."""
    folder, _ = make("swin")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= {"auto_map": {"AutoConfig": "code.Config"}, "model_type": "theirs"}
    path.write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit('their code ran')\n")
    with pytest.raises(CheckpointError, match="transformers cannot load"):
        load_transformers(str(folder), weights=None, settings=ExportSettings())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("./no_such_folder", "there is no such folder, and it names no repository"),
        ("swin", "there is no such folder, and it names no repository"),
    ],
)
def test_a_name_that_is_neither_folder_nor_repository_is_refused(name, reason):
    with pytest.raises(UsageError, match=reason):
        load_transformers(name, weights=None, settings=ExportSettings())


def test_fields_that_the_config_fixes_are_refused(make):
    folder, _ = make("swin")
    for overrides, reason in (
        ({"num_classes": 5}, "takes no num_classes"),
        ({"img_size": 64}, r"makes images of \(H, W\) = \(32, 32\), and \(64, 64\) was asked for"),
    ):
        with pytest.raises(UsageError, match=reason):
            load_transformers(
                str(folder), weights=None, settings=ExportSettings(overrides=overrides)
            )


def test_a_damaged_folder_is_one_sentence(make):
    folder, _ = make("swin")
    (folder / "config.json").write_text("{")
    with pytest.raises(VitExportError, match="transformers cannot load"):
        load_transformers(str(folder), weights=None, settings=ExportSettings())


def test_without_transformers_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CheckpointError, match="transformers is not installed") as raised:
        load_transformers("swin", weights=None, settings=ExportSettings())
    assert raised.value.hint == "pip install 'vit-export[transformers]'"

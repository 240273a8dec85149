"""JSON files beside a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from vit_export.checkpoint.load import Loaded, load_checkpoint
from vit_export.checkpoint.metadata import Metadata, read_metadata
from vit_export.errors import CheckpointError
from vit_export.images.prepare import prepare_batch
from vit_export.model.vit import create_model
from vit_export.variants import ViTConfig

Randomised = Callable[..., nn.Module]
HF = {
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"intermediate_size": 64, "image_size": 32, "patch_size": 8},
}
TIMM = {
    "architecture": "vit_micro_patch8_32",
    "num_classes": 3,
    "global_pool": "token",
    "model_args": {"num_heads": 4},
    "pretrained_cfg": {
        **{"input_size": [3, 32, 32], "crop_pct": 0.95, "interpolation": "bilinear"},
        **{"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_mode": "center"},
    },
}


@pytest.fixture
def hf_folder(tmp_path: Path) -> Path:
    """A tiny ViTForImageClassification as transformers saves it, with named classes."""
    names = dict(enumerate(("cat", "dog", "owl")))
    config = transformers.ViTConfig(**HF, id2label=names, label2id={v: k for k, v in names.items()})
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def timm_folder(tmp_path: Path) -> Path:
    """A tiny timm model as its hub repositories hold it."""
    config = ViTConfig(
        variant="x", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=3
    )
    save_file(dict(create_model(config).state_dict()), tmp_path / "model.safetensors")
    return tmp_path


def edit(path: Path, **changes: Any) -> None:
    """Change entries of a JSON file; None takes one out."""
    data = {**json.loads(path.read_text()), **changes} if path.exists() else changes
    path.write_text(json.dumps({name: v for name, v in data.items() if v is not None}))


def timm_loaded(folder: Path, **changes: Any) -> Loaded:
    """Load with a config.json of timm's."""
    edit(folder / "config.json", **{**TIMM, **changes})
    return load_checkpoint(folder)


# Hugging Face


def test_labels_come_from_the_config(hf_folder: Path) -> None:
    """In the order of their numbers."""
    assert load_checkpoint(hf_folder).labels == ("cat", "dog", "owl")
    assert load_checkpoint(hf_folder, overrides={"num_classes": 0}).labels == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"id2label": {"0": ["n1", "cat"], "1": ["n2", "dog"], "2": ["n3", "owl"]}},
        {"id2label": None, "label2id": {"owl": 2, "cat": 0, "dog": 1}},
    ],
    ids=["identifiers", "label2id"],
)
def test_other_forms_of_labels_are_read(changes: dict[str, Any], hf_folder: Path) -> None:
    """As in a file of `--labels`."""
    edit(hf_folder / "config.json", **changes)
    assert load_checkpoint(hf_folder).labels == ("cat", "dog", "owl")


def test_generic_labels_are_ignored(hf_folder: Path) -> None:
    """LABEL_0, LABEL_1, ... describe no classes."""
    edit(hf_folder / "config.json", id2label={str(n): f"LABEL_{n}" for n in range(3)})
    assert load_checkpoint(hf_folder).labels == ()


def test_labels_that_do_not_fit_the_head_are_left_out_and_reported(hf_folder: Path) -> None:
    """A stale config.json must not name classes wrongly."""
    edit(hf_folder / "config.json", id2label={"0": "cat", "1": "dog"})
    found = load_checkpoint(hf_folder)
    assert found.labels == ()
    assert found.report.assumed["labels"] == "none: 2 were given, the head has 3 classes"


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("hidden_size", 64, "embed_dim"),
        ("num_hidden_layers", 3, "depth"),
        ("intermediate_size", 128, "mlp_ratio"),
        ("patch_size", 4, "patch_size"),
        ("num_channels", 1, "in_chans"),
        ("qkv_bias", False, "qkv_bias"),
    ],
)
def test_a_config_json_that_contradicts_the_file_is_an_error(
    name: str, value: object, field: str, hf_folder: Path
) -> None:
    """The two belong to different models."""
    edit(hf_folder / "config.json", **{name: value})
    with pytest.raises(CheckpointError, match=rf"! {field}: file .*, config\.json"):
        load_checkpoint(hf_folder)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"hidden_act": "relu"}, "hidden_act 'relu' is not supported"),
        ({"pooler_act": "gelu"}, "pooler_act 'gelu'"),
        ({"patch_size": [8, 4]}, r"config.json: patch_size \(8, 4\) is not supported"),
        ({"id2label": {"0": "a", "2": "b"}}, "config.json: id2label: "),
        ({"id2label": ["a"]}, "config.json: id2label: "),
        ({"id2label": {"0": "a", "1": {"b": 1}, "2": "c"}}, "config.json: id2label: "),
    ],
)
def test_a_config_json_of_an_unsupported_network_is_refused(
    changes: dict[str, Any], match: str, hf_folder: Path
) -> None:
    """The message names the field."""
    edit(hf_folder / "config.json", **changes)
    with pytest.raises(CheckpointError, match=match):
        load_checkpoint(hf_folder)


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_a_damaged_config_is_refused(text: str, hf_folder: Path) -> None:
    """The hint: fix the file, or remove it."""
    (hf_folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"fix config\.json, or remove it to load"):
        load_checkpoint(hf_folder)


def test_the_config_json_of_another_kind_of_model_is_ignored(hf_folder: Path) -> None:
    """It does not describe this model, so the number of heads is missing."""
    edit(hf_folder / "config.json", model_type="bert")
    with pytest.raises(CheckpointError, match="--set num_heads=N"):
        load_checkpoint(hf_folder)
    assert read_metadata(hf_folder, layout="torchvision") == Metadata()


def test_the_users_settings_replace_those_of_config_json(hf_folder: Path) -> None:
    """The report shows both."""
    found = load_checkpoint(hf_folder, overrides={"num_heads": 8})
    assert found.config.num_heads == 8
    assert found.report.assumed["num_heads"] == "8, as set; 4, from config.json otherwise"


def picture(height: int, width: int) -> Image.Image:
    """A picture of smooth colours."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [rows * 2 % 256, columns * 3 % 256, (rows + columns) % 256]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


@pytest.mark.parametrize(
    ("processor", "shape"),
    [
        ({}, (40, 60)),
        ({"resample": 3, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}, (40, 60)),
        ({"do_normalize": False}, (40, 60)),
        ({"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3}, (40, 60)),
        ({"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}, (64, 64)),
        ({"size": {"height": 36, "width": 36}, "do_center_crop": True, "resample": 3,
          "crop_size": {"height": 32, "width": 32}}, (40, 60)),
        ({"size": {"shortest_edge": 36}, "do_center_crop": True,
          "crop_size": {"height": 32, "width": 32}}, (72, 108)),
    ],
    ids=["squash", "statistics", "plain", "bytes", "factor", "crop", "shortest"],
)  # fmt: skip
def test_images_are_prepared_as_the_processor_does(
    processor: dict[str, Any], shape: tuple[int, int], hf_folder: Path
) -> None:
    """Against transformers' own processor on a picture."""
    theirs = transformers.ViTImageProcessorPil(**{"size": {"height": 32, "width": 32}, **processor})
    theirs.save_pretrained(hf_folder)
    found = load_checkpoint(hf_folder)
    image = picture(*shape)
    expected = theirs(image, return_tensors="pt")["pixel_values"][0]
    ours = torch.from_numpy(prepare_batch([image], found.preprocess)[0])
    assert (ours - expected).abs().max() < 1e-5 * expected.abs().max()


def test_an_old_processor_with_one_number_as_size_is_read(hf_folder: Path) -> None:
    """`"size": 224`, as the first ViT repositories have it."""
    edit(hf_folder / "preprocessor_config.json", size=32, do_normalize=True, resample=2,
         image_mean=[0.5] * 3, image_std=[0.5] * 3)  # fmt: skip
    found = load_checkpoint(hf_folder)
    assert (found.preprocess.crop_mode, found.preprocess.interpolation) == ("squash", "bilinear")
    assert found.preprocess.size == (32, 32)


def test_a_size_of_null_counts_as_missing(hf_folder: Path) -> None:
    """Then it is 224 px, the default of transformers."""
    processor = {"size": None, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (hf_folder / "preprocessor_config.json").write_text(json.dumps(processor))
    assert load_checkpoint(hf_folder).preprocess.crop_pct == 1


# timm


def test_a_timm_config_gives_preparation_labels_and_heads(timm_folder: Path) -> None:
    """`pretrained_cfg`, as in timm's repositories."""
    found = timm_loaded(timm_folder, label_names=["a", "b", "c"])
    assert found.labels == ("a", "b", "c")
    assert found.preprocess.mean == (0.1, 0.2, 0.3)
    assert found.preprocess.std == (0.4, 0.5, 0.6)
    assert (found.preprocess.crop_pct, found.preprocess.interpolation) == (0.95, "bilinear")
    assert found.report.assumed["num_heads"] == "4, from config.json"
    about = found.report.assumed["preprocess"]
    assert about == "mean, std, crop_pct, crop_mode, interpolation from config.json"


@pytest.mark.parametrize(
    ("mode", "expected"), [("squash", "squash"), ("border", "border"), ("later", "center")]
)
def test_the_crop_mode_of_timm_is_followed_or_reported(
    mode: str, expected: str, timm_folder: Path
) -> None:
    """A later timm may have more modes."""
    found = timm_loaded(timm_folder, pretrained_cfg={**TIMM["pretrained_cfg"], "crop_mode": mode})
    assert found.preprocess.crop_mode == expected
    assert ("crop_mode" in found.report.assumed) == (mode == "later")


def test_the_pooling_of_timm_is_followed_or_refused(timm_folder: Path) -> None:
    """No tensor shows it."""
    assert timm_loaded(timm_folder, global_pool="avg").config.global_pool == "avg"
    with pytest.raises(CheckpointError, match="global_pool 'avgmax' is not supported"):
        timm_loaded(timm_folder, global_pool="avgmax")


def test_the_architecture_of_timm_names_the_heads(timm_folder: Path, tmp_path: Path) -> None:
    """A variant of vit-export has that name, and model_args has no num_heads."""
    config = ViTConfig(
        variant="x", img_size=32, patch_size=8, embed_dim=36, depth=1, num_heads=3, num_classes=3
    )
    save_file(dict(create_model(config).state_dict()), tmp_path / "model.safetensors")
    architecture = "vit_tiny_patch16_224.augreg_in21k"
    assert timm_loaded(timm_folder, architecture=architecture, model_args={}).config.num_heads == 3


def test_a_number_of_heads_that_does_not_divide_the_width_is_a_checkpoint_error(
    timm_folder: Path,
) -> None:
    """Config and weights do not belong together."""
    with pytest.raises(CheckpointError, match="embed_dim 32 is not divisible by num_heads 5"):
        timm_loaded(timm_folder, model_args={"num_heads": 5})

"""Files that were once loaded wrongly, or refused for a wrong reason."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file

from vit_export.checkpoint.load import load_checkpoint
from vit_export.errors import CheckpointError, ConfigError

HEADS = {"num_heads": 4}
SIZES = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 4, "num_classes": 3}


def timm_file(path: Path, **options: Any) -> Path:
    """Weights of a tiny model of timm."""
    model = timm.models.VisionTransformer(**{"img_size": 32, **SIZES, **options})
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, path)
    return path


@pytest.fixture
def hf_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a tiny ViTForImageClassification with a preprocessor_config.json."""

    def write(processor: Any = None, **options: Any) -> Path:
        config = transformers.ViTConfig(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
            patch_size=8, num_labels=3, **{"image_size": 32, **options},
        )  # fmt: skip
        transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
        if processor is not None:
            text = processor if isinstance(processor, str) else json.dumps(processor)
            (tmp_path / "preprocessor_config.json").write_text(text)
        return tmp_path

    return write


# image sizes that are not square


@pytest.mark.parametrize("size", [(64, 16), (128, 8), (16, 64)])
@pytest.mark.parametrize("given", [lambda size: size, lambda size: f"{size[0]}x{size[1]}"])
def test_positions_are_left_alone_at_a_size_with_as_many_patches(
    size: tuple[int, int], given: Callable[..., Any], tmp_path: Path,
    compare: Callable[..., float],
) -> None:  # fmt: skip
    """16 patches might be 4 x 4, but the user gives the grid."""
    torch.manual_seed(0)
    original = timm.models.VisionTransformer(**{"img_size": size, **SIZES}).eval()
    save_file(dict(original.state_dict()), tmp_path / "x.safetensors")
    overrides = {**HEADS, "img_size": given(size)}
    loaded = load_checkpoint(tmp_path / "x.safetensors", overrides=overrides)
    assert loaded.config.image_hw == size
    assert loaded.report.resampled == ()
    assert "as many patches as the file" in loaded.report.assumed["img_size"]
    assert compare(loaded.model, original) < 1e-12


def test_a_size_in_config_json_decides_before_the_user(hf_folder: Callable[..., Path]) -> None:
    """The file was trained at 32 x 32; another size of 16 patches resamples them."""
    loaded = load_checkpoint(hf_folder(), overrides={"img_size": "64x16"})
    assert loaded.report.resampled == ("vit.embeddings.position_embeddings",)
    assert loaded.config.image_hw == (64, 16)


# models without a class token


def test_a_file_that_lost_its_class_token_is_refused_by_that_name(tmp_path: Path) -> None:
    """17 positions are no grid: a model without class token has 16 for 4 x 4 patches."""
    path = timm_file(tmp_path / "x.safetensors")
    state = load_file(path)
    del state["cls_token"]
    save_file(state, path)
    with pytest.raises(CheckpointError, match="a file that lost one is not complete"):
        load_checkpoint(path, overrides=HEADS)


def test_pixels_after_the_last_whole_patch_are_ignored_as_by_the_original(
    hf_folder: Callable[..., Path],
) -> None:
    """For example SigLIP so400m/14 for 384 px."""
    config = load_checkpoint(hf_folder(image_size=38)).config
    assert (config.img_size, config.cut_edges, config.grid_hw) == (38, True, (4, 4))


# scores


@pytest.mark.parametrize(
    ("problem", "activation"),
    [
        (None, "softmax"),
        ("single_label_classification", "softmax"),
        ("multi_label_classification", "sigmoid"),
        ("regression", "none"),
    ],
)
def test_problem_type_decides_how_logits_become_scores(
    problem: str | None, activation: str, hf_folder: Callable[..., Path]
) -> None:
    """As transformers' pipelines use it."""
    assert load_checkpoint(hf_folder(problem_type=problem)).activation == activation


# preprocessor_config.json

HALVES = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 32, "width": 32}}


@pytest.mark.parametrize(
    ("processor", "reason"),
    [
        ("{", r"is no JSON object \(Expecting property"),
        ("[1]", r"is no JSON object \(Expected `object"),
        ({**HALVES, "resample": None}, r"resample: expected `int`, got `null`"),
        ({**HALVES, "resample": 4}, r"resample: invalid enum value 4"),
        ({**HALVES, "image_mean": 0.5}, r"image_mean: expected `array`, got `float`"),
        ({**HALVES, "image_std": None}, r"image_std: expected `array`, got `null`"),
        ({**HALVES, "size": {"height": 32}}, r"size: expected a positive size, got \(32, None\)"),
        ({**HALVES, "size": 0}, r"size: expected a positive size"),
        ({**HALVES, "rescale_factor": 0}, r"rescale_factor: expected a positive number"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_preprocessor_config_is_named_with_its_field(
    processor: Any, reason: str, hf_folder: Callable[..., Path]
) -> None:
    """The error does not blame config.json."""
    folder = hf_folder(processor)
    with pytest.raises(CheckpointError, match=rf"/preprocessor_config\.json: {reason}") as error:
        load_checkpoint(folder)
    assert error.value.hint.startswith("fix preprocessor_config.json, or remove it")


@pytest.mark.parametrize(("channels", "means"), [(1, 3), (3, 1)])
def test_means_of_other_channels_are_an_error_unless_the_user_sets_them(
    channels: int, means: int, hf_folder: Callable[..., Path]
) -> None:
    """A grey model beside the processor of an RGB one, or the other way round."""
    processor = {**HALVES, "image_mean": [0.5] * means, "image_std": [0.5] * means}
    folder = hf_folder(processor, num_channels=channels)
    reason = f"beside it has {means} values of image_mean, and the model has {channels} channels"
    with pytest.raises(CheckpointError, match=rf": preprocessor_config\.json {reason}") as error:
        load_checkpoint(folder)
    assert error.value.hint.startswith("give --mean and --std")
    loaded = load_checkpoint(folder, overrides={"mean": "0.5", "std": 0.25})
    assert (loaded.preprocess.mean, loaded.preprocess.std) == (
        (0.5,) * channels,
        (0.25,) * channels,
    )


def test_only_files_that_are_there_are_named_as_the_cause(hf_folder: Callable[..., Path]) -> None:
    """Without preprocessor_config.json it cannot be at fault."""
    reason = "its tensors and config.json and your settings describe no network: embed_dim"
    with pytest.raises(ConfigError, match=reason):
        load_checkpoint(hf_folder(), overrides={"num_heads": 5})


# pipes and devices


def test_pipes_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    """Opening a pipe would wait for a writer, and /dev/zero never ends."""
    os.mkfifo(tmp_path / "pipe.safetensors")
    for path in (tmp_path / "pipe.safetensors", Path("/dev/zero")):
        with pytest.raises(CheckpointError, match="is a pipe, socket or device"):
            load_checkpoint(path)
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="is a pipe, socket or device"):
        load_checkpoint(tmp_path)


def test_a_pipe_as_config_json_is_refused_at_once(hf_folder: Callable[..., Path]) -> None:
    """Also beside good weights."""
    folder = hf_folder()
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(CheckpointError, match=r"config\.json: is a pipe, socket or device"):
        load_checkpoint(folder)

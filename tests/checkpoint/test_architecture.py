"""The architecture of a checkpoint."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_export.checkpoint.architecture import fields_from_shapes, resolve
from vit_export.checkpoint.assemble import blank_model
from vit_export.checkpoint.layouts.timm import TIMM
from vit_export.checkpoint.metadata import Metadata
from vit_export.errors import CheckpointError, ConfigError
from vit_export.variants import FAMILIES, VARIANTS, ViTConfig, get_variant

PARTS: list[dict[str, Any]] = [
    {},
    {"reg_tokens": 4, "no_embed_class": True, "init_values": 1.0},  # DINOv2
    {"reg_tokens": 4, "init_values": 1.0, "mlp_layer": "swiglu"},
    {"pre_norm": True, "patch_bias": False, "projection_dim": 7, "act_layer": "quick_gelu"},  # CLIP
    {"class_token": False, "global_pool": "map", "reg_tokens": 0},  # SigLIP
    {"class_token": False, "global_pool": "avg", "fc_norm": True},
]


def resolved(config: ViTConfig, **arguments: Any) -> ViTConfig:
    """Resolve the shapes of a model of this architecture."""
    state = dict(blank_model(config).state_dict())
    timm_names = [re.sub(r"ls(\d)\.gamma", r"gamma_\1", name) for name in state]  # of DINOv3
    return resolve(
        state,
        names=timm_names if config.rope != "none" else state,
        **{
            **{"layout": TIMM, "metadata": Metadata(), "own": None, "variant": None},
            **{"overrides": {}, "num_heads": None, "source": "x.pth", "stem": "x", **arguments},
        },
    ).config


# variants of all others have the shapes of these, or an activation that no shape shows
RECOGNISED = ("ViT", "DeiT III", "FlexiViT", "DINOv2", "small")


@pytest.mark.parametrize(
    "config",
    [config for family, configs in FAMILIES.items() for config in configs
     if family.startswith(RECOGNISED) or config.distilled],
    ids=lambda config: config.alias,
)  # fmt: skip
def test_a_variant_is_recognised_by_its_shapes(config: ViTConfig) -> None:
    """Name, number of heads and image preparation follow."""
    assert resolved(config) == config


@pytest.mark.parametrize("name", VARIANTS)
def test_the_shapes_of_a_variant_fit_its_name(name: str) -> None:
    """`--variant` is the last word about all that shapes do not show."""
    assert resolved(VARIANTS[name], variant=VARIANTS[name]) == VARIANTS[name]


@settings(max_examples=30, deadline=None)
@given(
    dim=st.integers(1, 40),
    hidden=st.integers(1, 200),
    depth=st.integers(1, 3),
    patch=st.integers(1, 9),
    side=st.integers(1, 5),
    channels=st.integers(1, 4),
    distilled=st.booleans(),
    qkv_bias=st.booleans(),
    classes=st.integers(0, 5),
    families=st.sampled_from(PARTS),
)
def test_the_fields_of_any_architecture_are_inferred_from_shapes(
    dim: int, hidden: int, depth: int, patch: int, side: int, channels: int, distilled: bool,
    qkv_bias: bool, classes: int, families: dict[str, Any],
) -> None:  # fmt: skip
    """Also an MLP width that no round ratio gives."""
    ratio = hidden / dim if int(dim * (hidden / dim)) == hidden else (hidden + 0.5) / dim
    family = {} if distilled else families
    config = ViTConfig(
        variant="x", embed_dim=dim, mlp_ratio=ratio, depth=depth, patch_size=patch, num_heads=1,
        img_size=patch * side, in_chans=channels, distilled=distilled, qkv_bias=qkv_bias,
        num_classes=classes, mean=(0.5,) * channels, std=(0.5,) * channels, **family,
    )  # fmt: skip
    fields = fields_from_shapes(dict(blank_model(config).state_dict()), source="x.pth")
    for name in ("embed_dim", "depth", "patch_size", "in_chans", "distilled", "qkv_bias", *family):
        if name not in ("act_layer", "no_embed_class", "global_pool"):
            assert fields[name] == getattr(config, name)
    assert fields["num_classes"] == classes
    assert int(dim * fields["mlp_ratio"]) == hidden


def test_another_size_of_a_variant_has_its_heads() -> None:
    """Widths, depth and MLP decide; the name is the file's."""
    config = resolved(get_variant("s16", img_size=96, patch_size=8, num_classes=3))
    assert (config.variant, config.num_heads) == ("x", 6)
    assert (config.image_hw, config.patch_size) == ((96, 96), 8)


def test_a_size_is_inferred_though_the_variant_has_another() -> None:
    """With --img-size, the sizes of file and variant may differ."""
    file, variant = get_variant("ti16", img_size=96), get_variant("ti16")
    with pytest.raises(
        CheckpointError, match="! img_size: file 96, variant vit_tiny_patch16_224 224"
    ):
        resolved(file, variant=variant)
    assert resolved(file, variant=variant, overrides={"img_size": 128}).img_size == 96


def test_a_setting_that_makes_no_network_is_a_config_error() -> None:
    """Not a checkpoint error."""
    with pytest.raises(ConfigError, match="not divisible by num_heads 7"):
        resolved(get_variant("ti16"), overrides={"num_heads": 7})


def test_an_absent_block_is_named() -> None:
    """A large block number does not make a deep model."""
    state = dict(blank_model(get_variant("mnist")).state_dict())
    state["blocks.999999999.norm1.weight"] = state["blocks.0.norm1.weight"]
    with pytest.raises(CheckpointError, match="7 blocks, numbered up to 999999999; block 6 is"):
        fields_from_shapes(state, source="x.pth")


def test_a_blank_model_has_shapes_but_no_data() -> None:
    """Even the largest one takes no time."""
    model = blank_model(get_variant("h14"))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not model.training
    assert torch.get_default_device().type == "cpu"

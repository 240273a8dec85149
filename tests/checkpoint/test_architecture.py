"""The architecture of a checkpoint."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_export.checkpoint.architecture import fields_from_shapes, resolve, trained_size
from vit_export.checkpoint.assemble import blank_model
from vit_export.checkpoint.layouts.timm import TIMM
from vit_export.checkpoint.metadata import Metadata
from vit_export.errors import CheckpointError, ConfigError
from vit_export.variants import VARIANTS, ViTConfig, get_variant


def resolved(config: ViTConfig, **arguments: Any) -> ViTConfig:
    """Resolve the shapes of a model of this architecture."""
    return resolve(
        dict(blank_model(config).state_dict()),
        **{
            **{"layout": TIMM, "metadata": Metadata(), "own": None, "variant": None},
            **{"overrides": {}, "num_heads": None, "source": "x.pth", "stem": "x", **arguments},
        },
    )[0]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_recognised_by_its_shapes(name: str) -> None:
    """Name, number of heads and image preparation follow."""
    assert resolved(VARIANTS[name]) == VARIANTS[name]


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
)
def test_the_fields_of_any_architecture_are_inferred_from_shapes(
    dim: int, hidden: int, depth: int, patch: int, side: int, channels: int, distilled: bool,
    qkv_bias: bool, classes: int,
) -> None:  # fmt: skip
    """Also an MLP width that no round ratio gives."""
    ratio = hidden / dim if int(dim * (hidden / dim)) == hidden else (hidden + 0.5) / dim
    config = ViTConfig(
        variant="x", embed_dim=dim, mlp_ratio=ratio, depth=depth, patch_size=patch, num_heads=1,
        img_size=patch * side, in_chans=channels, distilled=distilled, qkv_bias=qkv_bias,
        num_classes=classes, mean=(0.5,) * channels, std=(0.5,) * channels,
    )  # fmt: skip
    fields = fields_from_shapes(dict(blank_model(config).state_dict()), source="x.pth")
    for name in ("embed_dim", "depth", "patch_size", "in_chans", "distilled", "qkv_bias"):
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


# the image size of a position embedding


def size_of(positions: int, num_prefix_tokens: int = 1, **sizes: Any) -> Any:
    """The size of a model with patches of 8 px."""
    return trained_size(
        torch.empty(1, positions, 8),
        {"patch_size": 8, "distilled": num_prefix_tokens == 2},
        sizes=sizes,
        source="x",
    )


@pytest.mark.parametrize(
    ("patches", "sizes", "expected"),
    [
        (16, {}, (32, "")),
        (16, {"config": None, "user": (24, 64)}, (32, "")),
        (16, {"config": (16, 64), "user": (32, 32)}, ((16, 64), "config")),
        (16, {"config": (8, 8), "user": "64x16"}, ((64, 16), "user")),
        (16, {"user": (130, 12)}, (32, "")),  # 16 patches only after rounding down
        (10, {"config": (16, 40), "user": (40, 16)}, ((16, 40), "config")),
        (10, {"user": "40x16"}, ((40, 16), "user")),
    ],
)
def test_the_first_size_with_as_many_patches_is_taken_and_else_a_square(
    patches: int, sizes: dict[str, Any], expected: Any
) -> None:
    """A position embedding shows only the number of patches."""
    assert size_of(1 + patches, **sizes) == expected


def test_there_is_no_size_without_positions() -> None:
    """Or with a class token only."""
    assert size_of(1) is None
    assert trained_size(None, {"patch_size": 8, "distilled": False}, sizes={}, source="x") is None


@pytest.mark.parametrize("user", [None, 64, (40, 40)])
def test_an_unknown_size_is_an_error_that_lists_the_possible_ones(user: Any) -> None:
    """12 patches, and no size that makes so many."""
    with pytest.raises(CheckpointError, match=r"one of 24x32, 16x48, 8x96 px, or height") as error:
        size_of(14, 2, user=user)
    assert "no_embed_class" not in str(error.value)


def test_positions_without_one_for_the_class_token_are_named_as_a_possible_cause() -> None:
    """225 positions: 14 x 16 patches and a class token, or 15 x 15 patches (FlexiViT)."""
    with pytest.raises(CheckpointError, match=r"positions are 15 x 15 patches .*no_embed_class"):
        size_of(225)

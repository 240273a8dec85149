"""The table of variants is the papers' and timm's, and no impossible network is made."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import pytest
import torch

from vit_export.errors import ConfigError, UnknownVariantError
from vit_export.model.vit import VisionTransformer
from vit_export.variants import (
    ALIASES,
    FAMILIES,
    IDENTITY,
    VARIANTS,
    ViTConfig,
    find_variants,
    get_variant,
    weights_license,
)

FULL = list(VARIANTS)


def test_every_variant_has_an_alias_and_a_family_of_its_own():
    assert len(VARIANTS) == len(ALIASES) == sum(map(len, FAMILIES.values())) > 50
    assert not set(VARIANTS) & set(ALIASES)
    assert all(config.variant == name for name, config in VARIANTS.items())


@pytest.mark.parametrize("name", FULL)
def test_a_name_and_its_alias_give_the_same_config(name):
    config = get_variant(name)
    assert config.variant == name
    assert get_variant(config.alias) is not None
    assert get_variant(config.alias) == config == VARIANTS[name]


@pytest.mark.parametrize(
    ("words", "aliases"),
    [
        (["dinov3"], {"dinov3_s16", "dinov3_b16", "dinov3_l16"}),
        (["DINOv2", "large"], {"dinov2_l14", "dinov2_l14_reg"}),
        (["clip_b32"], {"clip_b32", "openclip_b32"}),
        (["FlexiViT"], {"flexi_s", "flexi_b"}),
    ],
)
def test_variants_are_found_by_name_alias_and_family(words, aliases):
    found = find_variants(words)
    assert {config.alias for configs in found.values() for config in configs} == aliases


def test_a_search_without_result_names_the_nearest_variant():
    with pytest.raises(UnknownVariantError, match="no variant is called 'dinvo3_s16'; did you"):
        find_variants(["dinvo3_s16"])


def test_the_licence_is_that_of_published_weights():
    assert weights_license(get_variant("mae_b16")) == "cc-by-nc-4.0"
    assert weights_license(get_variant("b16")) == "apache-2.0"
    assert weights_license(get_variant("mnist")) == ""


@pytest.mark.parametrize("name", FULL)
def test_num_params_of_every_variant_is_that_of_the_module(name):
    with torch.device("meta"):
        model = VisionTransformer(VARIANTS[name])
    assert sum(p.numel() for p in model.parameters()) == VARIANTS[name].num_params


@pytest.mark.parametrize(
    "overrides",
    [
        {"pos_embed": "sincos"},
        {"pos_embed": "none"},
        {"qkv_bias": False, "num_classes": 0},
        {"representation_size": 48},
        {"distilled": True},
        {"img_size": (64, 32), "in_chans": 1, "mlp_ratio": 2.5},
    ],
)
def test_num_params_follows_every_field(tiny_config, overrides):
    config = tiny_config.replace(overrides)
    count = sum(p.numel() for p in VisionTransformer(config).parameters())
    assert config.num_params == count


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        VARIANTS["vit_mnist_28"].depth = 3
    assert hash(VARIANTS["vit_mnist_28"]) == hash(get_variant("mnist"))


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("depth", "8", 8),
        ("depth", 8.0, 8),
        ("qkv_bias", "False", False),
        ("qkv_bias", "1", True),
        ("qkv_bias", 0, False),
        ("mlp_ratio", "2", 2.0),
        ("img_size", "224x160", (224, 160)),
        ("img_size", "224X224", 224),
        ("img_size", [64, 32], (64, 32)),
        ("img_size", "96", 96),
        ("mean", "0.1,0.2,0.3", (0.1, 0.2, 0.3)),
        ("std", [1, 2, 3], (1.0, 2.0, 3.0)),
        ("global_pool", "avg", "avg"),
        ("norm_eps", "1e-12", 1e-12),
    ],
)
def test_an_override_is_read_as_the_type_of_its_field(name, value, read):
    found = getattr(get_variant("ti16", **{name: value}), name)
    assert found == read
    assert type(found) is type(read)


def test_mean_and_std_of_another_number_of_channels_are_averages():
    config = get_variant("deit_ti", in_chans="1")
    assert config.mean == (pytest.approx((0.485 + 0.456 + 0.406) / 3),)
    assert len(config.std) == 1
    assert get_variant("ti16", in_chans=1, mean="0.1", std="0.2").mean == (0.1,)
    assert get_variant("ti16", in_chans=5).std == (0.5,) * 5


REFUSED = [
    ({"patch_size": 0}, "patch_size=0: must be at least 1"),
    ({"depth": -1}, "depth=-1: must be at least 1"),
    ({"in_chans": 0}, "in_chans=0: must be at least 1"),
    ({"embed_dim": 0}, "embed_dim=0: must be at least 1"),
    ({"num_heads": 0}, "num_heads=0: must be at least 1"),
    ({"num_classes": -1}, "num_classes=-1: must be at least 0"),
    ({"representation_size": -2}, "representation_size=-2: must be at least 0"),
    ({"read_token": -1}, "read_token=-1: must be at least 0"),
    ({"img_size": 230}, "image height 230 px is not a multiple of patch_size 16; "
     "nearest sizes that are: 224, 240"),
    ({"img_size": "224x100"}, "image width 100 px is not a multiple"),
    ({"img_size": 0}, "image height 0 px"),
    ({"img_size": 10}, "nearest sizes that are: 16"),
    ({"num_heads": 5}, "embed_dim 192 is not divisible by num_heads 5; nearest numbers of heads "
     "that divide it: 2, 3, 4, 6"),
    ({"mlp_ratio": 0.001}, "the MLP would have no hidden layer"),
    ({"mlp_ratio": "nan"}, "mlp_ratio=nan: must be positive and finite"),
    ({"mlp_ratio": math.inf}, "mlp_ratio=inf: must be positive and finite"),
    ({"mean": (0.1, math.nan, 0.1)}, "must be finite"),
    ({"norm_eps": math.inf}, "must be positive and finite"),
    ({"norm_eps": 0}, "norm_eps=0.0: must be positive"),
    ({"read_token": 197}, "read_token=197: the sequence has 197 tokens"),
    ({"pos_embed": "sincos", "embed_dim": 6, "num_heads": 1}, "embed_dim divisible by 4"),
    ({"distilled": True, "global_pool": "avg"}, "distillation tokens"),
    ({"distilled": True, "read_token": 1}, "distillation tokens"),
    ({"distilled": True, "representation_size": 8}, "no pre-logits layer"),
    ({"global_pool": "max"}, "global_pool='max': expected one of token, avg"),
    ({"act_layer": "gelu_tan"}, "did you mean 'gelu_tanh'"),
    ({"pos_embed": "rope"}, "pos_embed='rope'"),
    ({"interpolation": "bicubik"}, "did you mean 'bicubic'"),
    ({"mean": "0.5,0.5"}, "mean has 2 values for in_chans=3"),
    ({"std": "0.5,0.5,0"}, "every value must be positive"),
    ({"crop_pct": 0}, "crop_pct=0.0: must lie in (0, 1]"),
    ({"crop_pct": 1.1}, "crop_pct=1.1: must lie in (0, 1]"),
    ({"crop_pct": "nan"}, "crop_pct=nan: must lie in (0, 1]"),
    ({"drop_rate": 1}, "drop_rate=1.0: must lie in [0, 1)"),
    ({"drop_path_rate": -0.1}, "drop_path_rate=-0.1: must lie in [0, 1)"),
    ({"dpeth": 3}, "did you mean 'depth'"),
    ({"depth": "twelve"}, "cannot set depth='twelve': expected int, such as 12"),
    ({"depth": 2.5}, "cannot set depth=2.5"),
    ({"depth": "inf"}, "cannot set depth='inf'"),
    ({"depth": None}, "cannot set depth=None"),
    ({"qkv_bias": "maybe"}, "cannot set qkv_bias='maybe': expected bool, such as True"),
    ({"img_size": "1x2x3"}, "expected a size, such as 224"),
    ({"img_size": []}, "expected a size"),
    ({"img_size": "large"}, "expected a size"),
    ({"mean": "a,b,c"}, "expected numbers separated by commas, e.g. 0.5,0.5,0.5"),
    ({"mlp_ratio": "wide"}, "expected float"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "reason"), REFUSED, ids=[str(overrides) for overrides, _ in REFUSED]
)
def test_an_impossible_config_is_refused_with_the_reason(overrides, reason):
    with pytest.raises(ConfigError, match=re.escape(reason)):
        get_variant("ti16", **overrides)


@pytest.mark.parametrize(
    ("name", "offered"),
    [("b61", "'b16'"), ("vit_base_patch16_225", "'vit_base_patch16_224'"),
     ("ViT_Base_Patch16_224", "'vit_base_patch16_224'"), ("deit_small", "deit_s")],
)  # fmt: skip
def test_an_unknown_variant_offers_the_nearest_names(name, offered):
    with pytest.raises(UnknownVariantError, match=re.escape(repr(name))) as caught:
        get_variant(name)
    assert offered in str(caught.value)
    assert "vit-export variants" in str(caught.value)


def test_a_name_unlike_any_variant_gets_no_suggestion():
    with pytest.raises(UnknownVariantError) as caught:
        get_variant("")
    assert "did you mean" not in str(caught.value)


def test_sizes_follow_from_the_fields():
    config = ViTConfig(variant="x", img_size=(64, 32), distilled=True, mlp_ratio=2.5)
    assert config.image_hw == (64, 32)
    assert config.grid_hw == (4, 2)
    assert config.num_prefix_tokens == 2
    assert config.num_tokens == 10
    assert config.mlp_dim == int(np.floor(768 * 2.5))
    assert config.num_features == 768
    assert config.replace({"distilled": False, "representation_size": 7}).num_features == 7


def test_identity_fields_do_not_change_the_network():
    config = VARIANTS["vit_mnist_28"]
    renamed = config.replace(dict.fromkeys(IDENTITY, "other"))
    assert all(getattr(renamed, name) == "other" for name in IDENTITY)
    changed = {f.name for f in dataclasses.fields(config)
               if getattr(config, f.name) != getattr(renamed, f.name)}  # fmt: skip
    assert changed == set(IDENTITY) == {"variant", "alias", "hub"}
    assert renamed.num_params == config.num_params

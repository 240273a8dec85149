"""Tensor names of Meta's own code: DINOv2, with and without registers, and DINOv3."""

from typing import Any

import torch
from torch import Tensor

from vit_export.checkpoint.layouts.huggingface_dino import NO_REGISTER_POSITIONS
from vit_export.checkpoint.layouts.rules import (
    COPY,
    JOIN_GATE,
    Conversion,
    Cue,
    Layout,
    Rule,
    rename,
)
from vit_export.errors import CheckpointError
from vit_export.model.rope import rotary_periods
from vit_export.variants import CHOICES

PERIODS = "rope_embed.periods"

# DINOv3 multiplies the joined bias by a mask, which is zero for keys
MASKED = Conversion("multiplied by its mask", lambda bias, mask: bias * mask)
_REGISTERS, _STORAGE = "register_tokens", "storage_tokens"
_BIAS = "blocks.{n}.attn.qkv.bias"
_MASK = "blocks.{n}.attn.qkv.bias_mask"
_BLOCKS = tuple(
    rename(name, name)
    for name in (
        "cls_token",
        "patch_embed.proj.{p}",
        "blocks.{n}.norm1.{p}",
        "blocks.{n}.attn.proj.{p}",
        "blocks.{n}.ls1.gamma",
        "blocks.{n}.norm2.{p}",
        "blocks.{n}.mlp.fc1.{p}",
        "blocks.{n}.mlp.fc2.{p}",
        "blocks.{n}.ls2.gamma",
        "norm.{p}",
    )
)

META_DINOV2 = Layout(
    name="meta_dinov2",
    required=("mask_token", "pos_embed", "blocks.{n}.ls1.gamma"),
    rules=(
        *_BLOCKS,
        rename("blocks.{n}.attn.qkv.{p}", "blocks.{n}.attn.qkv.{p}"),
        rename(_REGISTERS, "reg_token"),
        Rule(("pos_embed",), "pos_embed", unless=(_REGISTERS,)),
        Rule(("pos_embed", _REGISTERS), "pos_embed", NO_REGISTER_POSITIONS, when=_REGISTERS),
        rename("blocks.{n}.mlp.w12.{p}", "blocks.{n}.mlp.fc1.{p}"),
        rename("blocks.{n}.mlp.w3.{p}", "blocks.{n}.mlp.fc2.{p}"),
    ),
    ignored=("mask_token",),
    cues=(
        Cue(
            having=("mask_token",),
            lacking=(_REGISTERS,),
            fields={
                "interpolate_antialias": (False, "DINOv2"),
                "interpolate_offset": (0.1, "DINOv2"),
            },
        ),
        Cue(having=("mask_token",), fields={"no_embed_class": (False, "DINOv2")}),
    ),
    assumed={"norm_eps": (1e-6, "DINOv2")},
)
META_DINOV3 = Layout(
    name="meta_dinov3",
    required=(PERIODS,),
    rules=(
        *_BLOCKS,
        rename(_STORAGE, "reg_token"),
        rename("blocks.{n}.attn.qkv.weight", "blocks.{n}.attn.qkv.weight"),
        Rule((_BIAS,), _BIAS, COPY, unless=(_MASK,)),
        Rule((_BIAS, _MASK), _BIAS, MASKED, when=_MASK),
        Rule(
            ("blocks.{n}.mlp.w1.{p}", "blocks.{n}.mlp.w2.{p}"), "blocks.{n}.mlp.fc1.{p}", JOIN_GATE
        ),
        rename("blocks.{n}.mlp.w3.{p}", "blocks.{n}.mlp.fc2.{p}"),
    ),
    ignored=("mask_token", PERIODS, "local_cls_norm.{p}"),
    unsupported={r"^cls_norm\.": "a norm of its own for the class token"},
    assumed={
        "pos_embed": ("none", "DINOv3"),
        "norm_eps": (1e-5, "DINOv3"),
        "global_pool": ("token", "DINOv3; timm's averages the patches"),
    },
)


def rope_fields(periods: Tensor) -> dict[str, Any]:
    """Return the config fields of RoPE that give the periods in a file of DINOv3."""
    theta = 100.0
    for dtype in CHOICES["rope"][1:]:
        if torch.equal(rotary_periods(len(periods), theta=theta, dtype=dtype), periods.float()):
            return {"rope": dtype, "rope_theta": theta}
    raise CheckpointError(
        f"{PERIODS} holds other periods than DINOv3's, which grow to {theta:g}: not supported"
    )

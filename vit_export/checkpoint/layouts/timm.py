"""Tensor names of timm 1.0, which `vit.py` has too."""

import re
from typing import Any

from vit_export.checkpoint.layouts.rules import (
    JOIN_GATE,
    JOIN_QKV,
    JOIN_WITHOUT_KEY,
    Cue,
    Layout,
    Rule,
    rename,
)

_OUR_NAMES = (
    "cls_token",
    "dist_token",
    "reg_token",
    "pos_embed",
    "patch_embed.proj.{p}",
    "norm_pre.{p}",
    "blocks.{n}.norm1.{p}",
    "blocks.{n}.attn.qkv.{p}",
    "blocks.{n}.attn.proj.{p}",
    "blocks.{n}.ls1.gamma",
    "blocks.{n}.norm2.{p}",
    "blocks.{n}.mlp.fc1.{p}",
    "blocks.{n}.mlp.fc2.{p}",
    "blocks.{n}.ls2.gamma",
    "norm.{p}",
    "attn_pool.latent",
    "attn_pool.q.{p}",
    "attn_pool.kv.{p}",
    "attn_pool.proj.{p}",
    "attn_pool.norm.{p}",
    "attn_pool.mlp.fc1.{p}",
    "attn_pool.mlp.fc2.{p}",
    "fc_norm.{p}",
    "pre_logits.fc.{p}",
    "head.{p}",
    "head_dist.{p}",
)
_COPIES = tuple(rename(name, name) for name in _OUR_NAMES)


def _joined(template: str, target: str) -> Rule:
    return Rule(tuple(template.replace("@", part) for part in "qkv"), target, JOIN_QKV)


VIT_EXPORT = Layout(name="vit_export", rules=(*_COPIES, rename("projection.{p}", "projection.{p}")))

_KEYLESS = "blocks.{n}.attn.q_bias"
_SCALES = "blocks.{n}.gamma_1"

TIMM = Layout(
    name="timm",
    rules=(
        *_COPIES,
        rename("head.{i}.{p}", "head.{p}"),  # a head in an nn.Sequential, e.g. after dropout
        _joined("blocks.{n}.attn.@.{p}", "blocks.{n}.attn.qkv.{p}"),
        _joined("blocks.{n}.attn.@_proj.{p}", "blocks.{n}.attn.qkv.{p}"),
        _joined("blocks.{n}.attn.@_bias", "blocks.{n}.attn.qkv.bias"),
        Rule((_KEYLESS, "blocks.{n}.attn.v_bias"), "blocks.{n}.attn.qkv.bias", JOIN_WITHOUT_KEY),
        rename(_SCALES, "blocks.{n}.ls1.gamma"),  # DeiT III's own files, and EVA's code
        rename("blocks.{n}.gamma_2", "blocks.{n}.ls2.gamma"),
        Rule(
            ("blocks.{n}.mlp.fc1_g.{p}", "blocks.{n}.mlp.fc1_x.{p}"),
            "blocks.{n}.mlp.fc1.{p}",
            JOIN_GATE,
        ),
    ),
    ignored=("mask_token",),
    cues=(
        # these names do not show whether queries and keys are rotated
        Cue(
            having=("blocks.{n}.attn.q_proj.bias", "pos_embed"),
            lacking=("blocks.{n}.attn.k_proj.bias",),
            unsupported="rotary positions (EVA-02)",
        ),
        Cue(
            having=(_KEYLESS, "fc_norm.weight", "pos_embed"),
            asked={"rope": "none (EVA); EVA-02, which is not supported, has others"},
        ),
        Cue(having=(_SCALES,), lacking=("pos_embed", "reg_token"), unsupported="rotary positions"),
        Cue(
            having=(_SCALES, "fc_norm.weight"),
            lacking=("pos_embed",),
            unsupported="rotary positions of another kind than DINOv3's",
        ),
        Cue(
            having=(_SCALES, "pos_embed"),
            asked={"rope": "none (DeiT III); timm's ROPE-ViT, which is not supported, has others"},
        ),
        Cue(
            having=("fc_norm.weight",),
            lacking=("cls_token", "blocks.{n}.attn.qkv.bias", "blocks.{n}.ls1.gamma", _KEYLESS),
            unsupported="norms after attention and MLP (timm's rpn models)",
        ),
        Cue(
            having=("norm.weight", "pos_embed"),
            lacking=("cls_token", "attn_pool.latent", "blocks.{n}.ls1.gamma", _SCALES),
            asked={"act_layer": "gelu (I-JEPA, most of timm's), gelu_tanh (SigLIP 2)"},
        ),
        Cue(
            having=(_SCALES, "reg_token"),
            lacking=("pos_embed",),
            fields={
                "rope": ("float32", "timm's DINOv3"),
                "pos_embed": ("none", "timm's DINOv3"),
                "norm_eps": (1e-5, "timm's DINOv3"),
                "global_pool": (
                    "avg",
                    "timm's DINOv3; Meta's and Hugging Face's read the class token "
                    "(--set global_pool=token)",
                ),
            },
        ),
        Cue(
            having=("norm_pre.weight",),
            fields={"norm_eps": (1e-5, "timm's CLIP models")},
            asked={"act_layer": "quick_gelu (OpenAI, MetaCLIP, DFN) or gelu (LAION, DataComp)"},
        ),
        Cue(
            having=("attn_pool.latent",),
            asked={"act_layer": "gelu, or gelu_tanh (as timm's SigLIP so400m_patch16)"},
        ),
    ),
    unsupported={
        r"\.ls_?\d?\.gamma_\d|\.attn\.gamma": "layer scale inside the attention",
        r"^register_tokens$": "register tokens under another name than timm's",
        r"\.attn\.[qk]_norm\.": "norms of queries and keys",
        r"\.attn\.(norm|inner_attn_ln)\.": "a norm inside the attention",
        r"\.mlp\.(norm|ffn_ln)\.": "a norm inside the MLP",
        r"(relative_position|rel_pos|rope)": "relative or rotary positions",
        r"^(patch_embed\.backbone|stem)\.": "a convolutional stem",
    },
    assumed={"norm_eps": (1e-6, "timm's default")},
)

# what the tensors of timm's models do not show, by a regular expression of the architecture's name
_ARCHITECTURES: tuple[tuple[str, dict[str, Any]], ...] = (
    (r"vit_.*_clip_quickgelu_", {"act_layer": "quick_gelu", "norm_eps": 1e-5}),
    (r"vit_.*_clip_", {"act_layer": "gelu", "norm_eps": 1e-5}),
    (
        r"vit_(base_patch32_siglip|giantopt|large_.*siglip.*_512|so400m_patch16_siglip)",
        {"act_layer": "gelu_tanh"},
    ),
    (r"vit_.*siglip", {"act_layer": "gelu"}),
    (
        r"vit_.*_dinov3",
        {"rope": "float32", "pos_embed": "none", "norm_eps": 1e-5, "global_pool": "avg"},
    ),
    (
        r"vit_.*_lingbot",
        {"rope": "float32", "pos_embed": "none", "norm_eps": 1e-5, "global_pool": "token"},
    ),
)
# architectures with parts that neither `VisionTransformer` has nor the names of tensors show
UNSUPPORTED_ARCHITECTURES = re.compile(r"vit_.*(_rope_|_rpn_|relpos|_sapiens2)|vit_pe_|eva02_")


def architecture_fields(name: str) -> dict[str, Any]:
    """Return the config fields that an architecture of timm has, and that its tensors do not show.

    `name` is without the tag of its weights, e.g. `vit_base_patch16_clip_224`.
    """
    return next((dict(f) for form, f in _ARCHITECTURES if re.match(form, name)), {})

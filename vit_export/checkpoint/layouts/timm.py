"""Tensor names of timm 1.0, which `vit.py` has too."""

import torch

from vit_export.checkpoint.layouts.rules import JOIN_QKV, Conversion, Layout, Rule, rename

JOIN_WITHOUT_KEY = Conversion(
    "q and v biases joined, the key's bias is zero",
    lambda q, v: torch.cat((q, torch.zeros_like(q), v)),
)

_OUR_NAMES = (
    "cls_token",
    "dist_token",
    "pos_embed",
    "patch_embed.proj.{p}",
    "blocks.{n}.norm1.{p}",
    "blocks.{n}.attn.qkv.{p}",
    "blocks.{n}.attn.proj.{p}",
    "blocks.{n}.norm2.{p}",
    "blocks.{n}.mlp.fc1.{p}",
    "blocks.{n}.mlp.fc2.{p}",
    "norm.{p}",
    "pre_logits.fc.{p}",
    "head.{p}",
    "head_dist.{p}",
)
_COPIES = tuple(rename(name, name) for name in _OUR_NAMES)


def _joined(template: str, target: str) -> Rule:
    return Rule(tuple(template.replace("@", part) for part in "qkv"), target, JOIN_QKV)


VIT_EXPORT = Layout(name="vit_export", rules=_COPIES)

TIMM = Layout(
    name="timm",
    rules=(
        *_COPIES,
        _joined("blocks.{n}.attn.@.{p}", "blocks.{n}.attn.qkv.{p}"),
        _joined("blocks.{n}.attn.@_proj.{p}", "blocks.{n}.attn.qkv.{p}"),
        _joined("blocks.{n}.attn.@_bias", "blocks.{n}.attn.qkv.bias"),
        Rule(
            ("blocks.{n}.attn.q_bias", "blocks.{n}.attn.v_bias"),
            "blocks.{n}.attn.qkv.bias",
            JOIN_WITHOUT_KEY,
        ),
    ),
    ignored=("mask_token",),
    unsupported={
        r"\.(ls\d\.gamma|gamma_\d|gamma\d)$": "layer scale",
        r"^(norm_pre|ln_pre)\.": "a norm before the blocks",
        r"^(reg_token|register_tokens)$": "register tokens",
        r"\.attn\.[qk]_norm\.": "norms of queries and keys",
        r"\.attn\.(norm|inner_attn_ln)\.": "a norm inside the attention",
        r"\.mlp\.(norm|ffn_ln)\.": "a norm inside the MLP",
        r"\.mlp\.(w12|w1|w2|w3|fc1_g|fc1_x)\.": "a gated (SwiGLU) MLP",
        r"^attn_pool\.": "attention pooling",
        r"^fc_norm\.": "a norm after average pooling (vit-export's stands before the pooling)",
        r"(relative_position|rel_pos|rope)": "relative or rotary positions",
        r"^(patch_embed\.backbone|stem)\.": "a convolutional stem",
    },
    assumed={"norm_eps": (1e-6, "timm's default")},
)

"""Tensor names of Hugging Face transformers: DINOv2, with and without registers, and DINOv3.

Version 5 renamed modules in memory, and still writes the names of version 4 to files.
"""

import torch

from vit_export.checkpoint.layouts.rules import (
    JOIN_GATE,
    JOIN_QKV,
    JOIN_WITHOUT_KEY,
    Conversion,
    Cue,
    Layout,
    Rule,
    rename,
)

# the originals add positions before they put the registers between class token and patches
NO_REGISTER_POSITIONS = Conversion(
    "zero positions put in for the registers, which have none",
    lambda positions, registers: torch.cat(
        (positions[:, :1], torch.zeros_like(registers), positions[:, 1:]), dim=1
    ),
)
_REGISTERS = "embeddings.register_tokens"
_POSITIONS = "embeddings.position_embeddings"
_BLOCK = "encoder.layer.{n}"
_HEAD = "classifier.weight"

HUGGINGFACE_DINOV2 = Layout(
    name="huggingface_dinov2",
    prefix=r"(?:dinov2\.|dinov2_with_registers\.)?",
    required=(_POSITIONS, f"{_BLOCK}.layer_scale1.lambda1"),
    rules=(
        rename("embeddings.cls_token", "cls_token"),
        rename(_REGISTERS, "reg_token"),
        Rule((_POSITIONS,), "pos_embed", unless=(_REGISTERS,)),
        Rule((_POSITIONS, _REGISTERS), "pos_embed", NO_REGISTER_POSITIONS, when=_REGISTERS),
        rename("embeddings.patch_embeddings.projection.{p}", "patch_embed.proj.{p}"),
        rename(f"{_BLOCK}.norm1.{{p}}", "blocks.{n}.norm1.{p}"),
        Rule(
            tuple(f"{_BLOCK}.attention.attention.{x}.{{p}}" for x in ("query", "key", "value")),
            "blocks.{n}.attn.qkv.{p}",
            JOIN_QKV,
        ),
        Rule(
            tuple(f"{_BLOCK}.attention.{x}_proj.{{p}}" for x in "qkv"),
            "blocks.{n}.attn.qkv.{p}",
            JOIN_QKV,
        ),
        rename(f"{_BLOCK}.attention.output.dense.{{p}}", "blocks.{n}.attn.proj.{p}"),
        rename(f"{_BLOCK}.attention.o_proj.{{p}}", "blocks.{n}.attn.proj.{p}"),
        rename(f"{_BLOCK}.layer_scale1.lambda1", "blocks.{n}.ls1.gamma"),
        rename(f"{_BLOCK}.norm2.{{p}}", "blocks.{n}.norm2.{p}"),
        rename(f"{_BLOCK}.mlp.fc1.{{p}}", "blocks.{n}.mlp.fc1.{p}"),
        rename(f"{_BLOCK}.mlp.fc2.{{p}}", "blocks.{n}.mlp.fc2.{p}"),
        rename(f"{_BLOCK}.mlp.weights_in.{{p}}", "blocks.{n}.mlp.fc1.{p}"),
        rename(f"{_BLOCK}.mlp.weights_out.{{p}}", "blocks.{n}.mlp.fc2.{p}"),
        Rule(
            (f"{_BLOCK}.mlp.gate_proj.{{p}}", f"{_BLOCK}.mlp.up_proj.{{p}}"),
            "blocks.{n}.mlp.fc1.{p}",
            JOIN_GATE,
        ),
        rename(f"{_BLOCK}.mlp.down_proj.{{p}}", "blocks.{n}.mlp.fc2.{p}"),
        rename(f"{_BLOCK}.layer_scale2.lambda1", "blocks.{n}.ls2.gamma"),
        rename("layernorm.{p}", "norm.{p}"),
        rename("classifier.{p}", "head.{p}"),
    ),
    ignored=("embeddings.mask_token",),
    cues=(
        Cue(
            having=(_HEAD,),
            fields={
                "global_pool": (
                    "token_mean",
                    "Hugging Face's Dinov2ForImageClassification: class token and mean of patches",
                )
            },
        ),
        Cue(
            having=(),
            lacking=(_REGISTERS,),
            fields={"interpolate_antialias": (False, "Hugging Face's Dinov2Model")},
        ),
        Cue(having=(), fields={"no_embed_class": (False, "Hugging Face's Dinov2Model")}),
    ),
    assumed={"norm_eps": (1e-6, "the default of Hugging Face's Dinov2Model")},
)

_V3 = "layer.{n}"
_DINOV3 = "Hugging Face's DINOv3ViTModel"
HUGGINGFACE_DINOV3 = Layout(
    name="huggingface_dinov3",
    prefix=r"(?:model\.)?",
    required=(f"{_V3}.layer_scale1.lambda1",),
    rules=(
        rename("embeddings.cls_token", "cls_token"),
        rename(_REGISTERS, "reg_token"),
        rename("embeddings.patch_embeddings.{p}", "patch_embed.proj.{p}"),
        rename(f"{_V3}.norm1.{{p}}", "blocks.{n}.norm1.{p}"),
        Rule(
            tuple(f"{_V3}.attention.{x}_proj.{{p}}" for x in "qkv"),
            "blocks.{n}.attn.qkv.{p}",
            JOIN_QKV,
        ),
        Rule(
            tuple(f"{_V3}.attention.{x}_proj.bias" for x in "qv"),
            "blocks.{n}.attn.qkv.bias",
            JOIN_WITHOUT_KEY,
            unless=(f"{_V3}.attention.k_proj.bias",),
        ),
        rename(f"{_V3}.attention.o_proj.{{p}}", "blocks.{n}.attn.proj.{p}"),
        rename(f"{_V3}.layer_scale1.lambda1", "blocks.{n}.ls1.gamma"),
        rename(f"{_V3}.norm2.{{p}}", "blocks.{n}.norm2.{p}"),
        Rule(
            (f"{_V3}.mlp.up_proj.{{p}}",),
            "blocks.{n}.mlp.fc1.{p}",
            unless=(f"{_V3}.mlp.gate_proj.weight",),
        ),
        Rule(
            (f"{_V3}.mlp.gate_proj.{{p}}", f"{_V3}.mlp.up_proj.{{p}}"),
            "blocks.{n}.mlp.fc1.{p}",
            JOIN_GATE,
            when=f"{_V3}.mlp.gate_proj.weight",
        ),
        rename(f"{_V3}.mlp.down_proj.{{p}}", "blocks.{n}.mlp.fc2.{p}"),
        rename(f"{_V3}.layer_scale2.lambda1", "blocks.{n}.ls2.gamma"),
        rename("norm.{p}", "norm.{p}"),
    ),
    ignored=("embeddings.mask_token",),
    assumed={
        "rope": ("float32", _DINOV3),
        "pos_embed": ("none", _DINOV3),
        "norm_eps": (1e-5, f"the default of {_DINOV3}"),
        "global_pool": ("token", f"{_DINOV3}, whose pooler reads the class token; timm's averages"),
    },
)

"""The layouts that are understood, one table for each library.

Names were read off the libraries themselves: timm 1.0, transformers 4 and 5 (5 renames its
modules, and writes the names of 4 to disk), torchvision 0.29, google-research's
vision_transformer and big_vision, and the nn.TransformerEncoder models of teaching notebooks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vit_export.checkpoint.layouts.rules import (
    CLASS_POSITION_FIRST,
    DOUBLE,
    FOLD_OUT_KERNEL,
    JOIN,
    JOIN_HEAD_BIASES,
    JOIN_KERNELS,
    JOIN_WITHOUT_KEY,
    TRANSPOSE,
    TRANSPOSE_CONV,
    ZERO_CLASS_POSITION,
    ZERO_SECOND_HEAD,
    Binding,
    Conversion,
    Layout,
    Rule,
    bind,
)
from vit_export.variants import IMAGENET_MEAN, IMAGENET_STD


def _rename(source: str, target: str) -> Rule:
    return Rule((source,), target)


def _convert(source: str, target: str, conversion: Conversion) -> Rule:
    return Rule((source,), target, conversion)


_OURS = (
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
_STRAIGHT = tuple(_rename(name, name) for name in _OURS)

VIT_EXPORT = Layout(name="vit_export", title="vit-export", rules=_STRAIGHT)

TIMM = Layout(
    name="timm",
    title="timm",
    rules=(
        *_STRAIGHT,
        Rule(
            tuple(f"blocks.{{n}}.attn.{part}.{{p}}" for part in "qkv"),
            "blocks.{n}.attn.qkv.{p}",
            JOIN,
        ),
        Rule(
            tuple(f"blocks.{{n}}.attn.{part}_proj.{{p}}" for part in "qkv"),
            "blocks.{n}.attn.qkv.{p}",
            JOIN,
        ),
        Rule(
            tuple(f"blocks.{{n}}.attn.{part}_bias" for part in "qkv"),
            "blocks.{n}.attn.qkv.bias",
            JOIN,
        ),
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
        r"^fc_norm\.": "a norm after average pooling (ours stands before the pooling)",
        r"(relative_position|rel_pos|rope)": "relative or rotary positions",
        r"^(patch_embed\.backbone|stem)\.": "a convolutional stem",
    },
    assumed={"norm_eps": (1e-6, "timm's default")},
)

_HF_TOKEN = "embeddings.distillation_token"
_HF_BLOCK = "encoder.layer.{n}"
HUGGING_FACE = Layout(
    name="huggingface",
    title="Hugging Face",
    prefix=r"(?:vit\.|deit\.)?",
    rules=(
        _rename("embeddings.cls_token", "cls_token"),
        _rename(_HF_TOKEN, "dist_token"),
        _rename("embeddings.position_embeddings", "pos_embed"),
        _rename("embeddings.patch_embeddings.projection.{p}", "patch_embed.proj.{p}"),
        # transformers 4, and the files that 5 writes
        Rule(
            tuple(f"{_HF_BLOCK}.attention.attention.{x}.{{p}}" for x in ("query", "key", "value")),
            "blocks.{n}.attn.qkv.{p}",
            JOIN,
        ),
        _rename(f"{_HF_BLOCK}.attention.output.dense.{{p}}", "blocks.{n}.attn.proj.{p}"),
        _rename(f"{_HF_BLOCK}.layernorm_before.{{p}}", "blocks.{n}.norm1.{p}"),
        _rename(f"{_HF_BLOCK}.layernorm_after.{{p}}", "blocks.{n}.norm2.{p}"),
        _rename(f"{_HF_BLOCK}.intermediate.dense.{{p}}", "blocks.{n}.mlp.fc1.{p}"),
        _rename(f"{_HF_BLOCK}.output.dense.{{p}}", "blocks.{n}.mlp.fc2.{p}"),
        # transformers 5 in memory
        Rule(
            tuple(f"layers.{{n}}.attention.{x}_proj.{{p}}" for x in "qkv"),
            "blocks.{n}.attn.qkv.{p}",
            JOIN,
        ),
        _rename("layers.{n}.attention.o_proj.{p}", "blocks.{n}.attn.proj.{p}"),
        _rename("layers.{n}.layernorm_before.{p}", "blocks.{n}.norm1.{p}"),
        _rename("layers.{n}.layernorm_after.{p}", "blocks.{n}.norm2.{p}"),
        _rename("layers.{n}.mlp.fc1.{p}", "blocks.{n}.mlp.fc1.{p}"),
        _rename("layers.{n}.mlp.fc2.{p}", "blocks.{n}.mlp.fc2.{p}"),
        _rename("layernorm.{p}", "norm.{p}"),
        # ViTForImageClassification has no pooler, DeiTModel's does not fit two tokens
        Rule(("pooler.dense.{p}",), "pre_logits.fc.{p}", unless=(_HF_TOKEN, "classifier.weight")),
        Rule(("classifier.{p}",), "head.{p}", unless=(_HF_TOKEN,)),
        # DeiTForImageClassification: the class token's head alone
        Rule(("classifier.{p}",), "head.{p}", DOUBLE, when=_HF_TOKEN),
        Rule(("classifier.{p}",), "head_dist.{p}", ZERO_SECOND_HEAD, when=_HF_TOKEN),
        _rename("cls_classifier.{p}", "head.{p}"),
        _rename("distillation_classifier.{p}", "head_dist.{p}"),
    ),
    ignored=("pooler.dense.{p}", "embeddings.mask_token"),
    unsupported={
        r"layer_scale|lambda_\d": "layer scale",
        r"register_tokens": "register tokens",
        r"relative_position": "relative positions",
        r"^decoder\.": "a decoder (masked image modelling)",
        r"\.mlp\.weights_(in|out)\.": "a gated (SwiGLU) MLP",
    },
    assumed={"norm_eps": (1e-12, "the default of Hugging Face's ViT")},
)  # fmt: skip

_TV_BLOCK = "encoder.layers.encoder_layer_{n}"
TORCHVISION = Layout(
    name="torchvision",
    title="torchvision",
    rules=(
        _rename("class_token", "cls_token"),
        _rename("encoder.pos_embedding", "pos_embed"),
        _rename("conv_proj.{p}", "patch_embed.proj.{p}"),
        _rename(f"{_TV_BLOCK}.ln_1.{{p}}", "blocks.{n}.norm1.{p}"),
        _rename(f"{_TV_BLOCK}.self_attention.in_proj_{{p}}", "blocks.{n}.attn.qkv.{p}"),
        _rename(f"{_TV_BLOCK}.self_attention.out_proj.{{p}}", "blocks.{n}.attn.proj.{p}"),
        _rename(f"{_TV_BLOCK}.ln_2.{{p}}", "blocks.{n}.norm2.{p}"),
        _rename(f"{_TV_BLOCK}.mlp.0.{{p}}", "blocks.{n}.mlp.fc1.{p}"),
        _rename(f"{_TV_BLOCK}.mlp.3.{{p}}", "blocks.{n}.mlp.fc2.{p}"),
        _rename(f"{_TV_BLOCK}.mlp.linear_1.{{p}}", "blocks.{n}.mlp.fc1.{p}"),
        _rename(f"{_TV_BLOCK}.mlp.linear_2.{{p}}", "blocks.{n}.mlp.fc2.{p}"),
        _rename("encoder.ln.{p}", "norm.{p}"),
        _rename("heads.pre_logits.{p}", "pre_logits.fc.{p}"),
        _rename("heads.head.{p}", "head.{p}"),
    ),
    unsupported={r"^conv_proj\.(conv_bn|\d)": "a convolutional stem"},
    fixed={"norm_eps": 1e-6},
    assumed={
        "mean": (IMAGENET_MEAN, "torchvision's transforms"),
        "std": (IMAGENET_STD, "torchvision's transforms"),
        "crop_pct": (0.875, "torchvision's transforms (224 of 256 px)"),
        "interpolation": ("bilinear", "torchvision's transforms"),
    },
)


def _jax_block(attention: int, norm2: int, mlp: int) -> tuple[Rule, ...]:
    """A Flax encoder block; modules are numbered in the order of their creation."""
    block = "Transformer/encoderblock_{n}"
    attn, dense = f"{block}/MultiHeadDotProductAttention_{attention}", f"{block}/MlpBlock_{mlp}"
    heads = [f"{attn}/{part}" for part in ("query", "key", "value")]
    return (
        *_jax_norm(f"{block}/LayerNorm_0", "blocks.{n}.norm1"),
        Rule(tuple(f"{h}/kernel" for h in heads), "blocks.{n}.attn.qkv.weight", JOIN_KERNELS),
        Rule(tuple(f"{h}/bias" for h in heads), "blocks.{n}.attn.qkv.bias", JOIN_HEAD_BIASES),
        _convert(f"{attn}/out/kernel", "blocks.{n}.attn.proj.weight", FOLD_OUT_KERNEL),
        _rename(f"{attn}/out/bias", "blocks.{n}.attn.proj.bias"),
        *_jax_norm(f"{block}/LayerNorm_{norm2}", "blocks.{n}.norm2"),
        *_jax_dense(f"{dense}/Dense_0", "blocks.{n}.mlp.fc1"),
        *_jax_dense(f"{dense}/Dense_1", "blocks.{n}.mlp.fc2"),
    )


def _jax_norm(source: str, target: str) -> tuple[Rule, ...]:
    return (
        _rename(f"{source}/scale", f"{target}.weight"),
        _rename(f"{source}/bias", f"{target}.bias"),
    )


def _jax_dense(source: str, target: str) -> tuple[Rule, ...]:
    return (
        _convert(f"{source}/kernel", f"{target}.weight", TRANSPOSE),
        _rename(f"{source}/bias", f"{target}.bias"),
    )


def _jax(name: str, title: str, attention: int, norm2: int, mlp: int, *rules: Rule) -> Layout:
    return Layout(
        name=name,
        title=title,
        prefix=r"(?:opt/target/|params/img/|params/|img/)?",
        rules=(
            _rename("cls", "cls_token"),
            _convert("embedding/kernel", "patch_embed.proj.weight", TRANSPOSE_CONV),
            _rename("embedding/bias", "patch_embed.proj.bias"),
            *_jax_block(attention, norm2, mlp),
            *_jax_norm("Transformer/encoder_norm", "norm"),
            *_jax_dense("pre_logits", "pre_logits.fc"),
            *_jax_dense("head", "head"),
            *rules,
        ),
        unsupported={
            r"MAPHead_\d": "attention pooling (MAP head)",
            r"(conv_root|gn_root|block\d/unit\d)": "a convolutional stem (hybrid)",
            r"^(params/)?txt/": "a text tower",
        },
        fixed={"norm_eps": 1e-6},
        assumed={
            "act_layer": (
                "gelu_tanh",
                "flax's nn.gelu; copies of these weights in other libraries run the exact GELU "
                "(act_layer=gelu)",
            )
        },
        heads_seen_in=f"Transformer/encoderblock_{{n}}/MultiHeadDotProductAttention_{attention}"
        "/query/kernel",
    )


GOOGLE_JAX = _jax(
    "google_jax", "Google JAX (vision_transformer)", 1, 2, 3,
    _rename("Transformer/posembed_input/pos_embedding", "pos_embed"),
)  # fmt: skip
BIG_VISION = _jax(
    "big_vision", "Google JAX (big_vision)", 0, 1, 0,
    _convert("pos_embedding", "pos_embed", ZERO_CLASS_POSITION),
)  # fmt: skip

_NB_BLOCK = "encoder_layers.layers.{n}"
TRANSFORMER_ENCODER = Layout(
    name="transformer_encoder",
    title="nn.TransformerEncoder",
    rules=(
        _rename("patch_embeddings.cls_token", "cls_token"),
        _convert("patch_embeddings.pos_embedding", "pos_embed", CLASS_POSITION_FIRST),
        _rename("patch_embeddings.patcher.0.{p}", "patch_embed.proj.{p}"),
        _rename(f"{_NB_BLOCK}.norm1.{{p}}", "blocks.{n}.norm1.{p}"),
        _rename(f"{_NB_BLOCK}.self_attn.in_proj_{{p}}", "blocks.{n}.attn.qkv.{p}"),
        _rename(f"{_NB_BLOCK}.self_attn.out_proj.{{p}}", "blocks.{n}.attn.proj.{p}"),
        _rename(f"{_NB_BLOCK}.norm2.{{p}}", "blocks.{n}.norm2.{p}"),
        _rename(f"{_NB_BLOCK}.linear1.{{p}}", "blocks.{n}.mlp.fc1.{p}"),
        _rename(f"{_NB_BLOCK}.linear2.{{p}}", "blocks.{n}.mlp.fc2.{p}"),
        _rename("MLP.0.{p}", "norm.{p}"),
        _rename("MLP.1.{p}", "head.{p}"),
    ),
    unsupported={r"^encoder_layers\.norm\.": "a norm of the encoder besides the head's"},
    fixed={"norm_eps": 1e-5},
    heads_in_table=False,
    assumed={
        "read_token": (1, "these notebooks append the class token and read the first patch"),
        "act_layer": ("gelu", "these notebooks set norm_first=True and activation='gelu'"),
    },
)

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        VIT_EXPORT, TIMM, HUGGING_FACE, TORCHVISION, GOOGLE_JAX, BIG_VISION, TRANSFORMER_ENCODER,
    )
}  # fmt: skip


def recognise(names: Iterable[str], metadata: Any = ()) -> tuple[Layout, Binding] | None:
    """The layout whose rules know most of a file's names, or None where none knows half.

    Args:
        names: Names of the tensors.
        metadata: Keys of the file's metadata; ours marks our own layout.
    """
    names = list(names)
    if "vit_export" in metadata:
        return VIT_EXPORT, bind(VIT_EXPORT, names)
    candidates = [layout for layout in LAYOUTS.values() if layout is not VIT_EXPORT]
    bound = [(layout, bind(layout, names)) for layout in candidates]
    layout, binding = max(bound, key=lambda pair: len(names) - len(pair[1].unexpected))
    return (layout, binding) if len(binding.unexpected) * 2 < len(names) else None

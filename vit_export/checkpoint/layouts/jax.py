"""Tensor names of Google's JAX code: vision_transformer and big_vision."""

import torch

from vit_export.checkpoint.layouts.rules import TRANSPOSE, Conversion, Cue, Layout, Rule, rename
from vit_export.variants import HALF

TRANSPOSE_CONV = Conversion("kernel transposed", lambda kernel: kernel.permute(3, 2, 0, 1))
JOIN_KERNELS = Conversion(
    "heads folded, kernel transposed, q, k and v joined",
    lambda *qkv: torch.cat([kernel.flatten(1).T for kernel in qkv]),  # each (D, h, d) to (D, D)
)
JOIN_BIASES = Conversion("heads folded, q, k and v joined", lambda *qkv: torch.cat(qkv).flatten())
FOLD_OUT_KERNEL = Conversion("heads folded, kernel transposed", lambda k: k.flatten(0, 1).T)


def _norm(source: str, target: str) -> tuple[Rule, ...]:
    return rename(f"{source}/scale", f"{target}.weight"), rename(f"{source}/bias", f"{target}.bias")


def _dense(source: str, target: str, kernel: Conversion = TRANSPOSE) -> tuple[Rule, ...]:
    return (
        rename(f"{source}/kernel", f"{target}.weight", kernel),
        rename(f"{source}/bias", f"{target}.bias"),
    )


def _attention(source: str) -> tuple[list[str], list[str]]:
    """Kernels and biases of queries, keys and values."""
    projections = [f"{source}/{part}" for part in ("query", "key", "value")]
    return [f"{p}/kernel" for p in projections], [f"{p}/bias" for p in projections]


def _layout(
    name: str, *own: Rule, attention: int, norm2: int, mlp: int, cues: tuple[Cue, ...] = ()
) -> Layout:
    """Layout of one of Google's two code bases, with rules of its own.

    The numbers are those of modules in a block, which Flax counts in the order of their creation.
    """
    block = "Transformer/encoderblock_{n}"
    attn = f"{block}/MultiHeadDotProductAttention_{attention}"
    kernels, biases = _attention(attn)
    return Layout(
        name=name,
        prefix=r"(?:opt/target/|params/img/|params/|img/)?",
        rules=(
            rename("cls", "cls_token"),
            *_dense("embedding", "patch_embed.proj", TRANSPOSE_CONV),
            *_norm(f"{block}/LayerNorm_0", "blocks.{n}.norm1"),
            Rule(tuple(kernels), "blocks.{n}.attn.qkv.weight", JOIN_KERNELS),
            Rule(tuple(biases), "blocks.{n}.attn.qkv.bias", JOIN_BIASES),
            *_dense(f"{attn}/out", "blocks.{n}.attn.proj", FOLD_OUT_KERNEL),
            *_norm(f"{block}/LayerNorm_{norm2}", "blocks.{n}.norm2"),
            *_dense(f"{block}/MlpBlock_{mlp}/Dense_0", "blocks.{n}.mlp.fc1"),
            *_dense(f"{block}/MlpBlock_{mlp}/Dense_1", "blocks.{n}.mlp.fc2"),
            *_norm("Transformer/encoder_norm", "norm"),
            *_dense("pre_logits", "pre_logits.fc"),
            *_dense("head", "head"),
            *own,
        ),
        others=(r"(params/)?(txt/|t$|b$)",),  # text tower, temperature and bias of SigLIP
        cues=cues,
        unsupported={
            r"(conv_root|gn_root|block\d/unit\d)": "a convolutional stem (hybrid)",
        },
        assumed={
            "norm_eps": (1e-6, "flax's nn.LayerNorm"),
            "mean": (HALF, "Google's value_range(-1, 1)"),
            "std": (HALF, "Google's value_range(-1, 1)"),
            "act_layer": (
                "gelu_tanh",
                "flax's nn.gelu; copies of these weights in other libraries run the exact GELU "
                "(act_layer=gelu)",
            ),
        },
    )


GOOGLE_JAX = _layout(
    "google_jax",
    rename("Transformer/posembed_input/pos_embedding", "pos_embed"),
    attention=1,
    norm2=2,
    mlp=3,
)
_MAP = "MAPHead_0"
_KERNELS, _BIASES = _attention(f"{_MAP}/MultiHeadDotProductAttention_0")
BIG_VISION = _layout(
    "big_vision",
    rename("pos_embedding", "pos_embed"),
    rename(f"{_MAP}/probe", "attn_pool.latent"),
    Rule((_KERNELS[0],), "attn_pool.q.weight", JOIN_KERNELS),
    Rule((_BIASES[0],), "attn_pool.q.bias", JOIN_BIASES),
    Rule(tuple(_KERNELS[1:]), "attn_pool.kv.weight", JOIN_KERNELS),
    Rule(tuple(_BIASES[1:]), "attn_pool.kv.bias", JOIN_BIASES),
    *_dense(f"{_MAP}/MultiHeadDotProductAttention_0/out", "attn_pool.proj", FOLD_OUT_KERNEL),
    *_norm(f"{_MAP}/LayerNorm_0", "attn_pool.norm"),
    *_dense(f"{_MAP}/MlpBlock_0/Dense_0", "attn_pool.mlp.fc1"),
    *_dense(f"{_MAP}/MlpBlock_0/Dense_1", "attn_pool.mlp.fc2"),
    attention=0,
    norm2=1,
    mlp=0,
    cues=(
        Cue(
            having=("pos_embedding", "cls"),
            fields={"no_embed_class": (True, "big_vision, which puts the class token in later")},
        ),
    ),
)

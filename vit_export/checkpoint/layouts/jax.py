"""Tensor names of Google's JAX code: vision_transformer and big_vision."""

import torch

from vit_export.checkpoint.layouts.rules import Conversion, Layout, Rule, rename

TRANSPOSE = Conversion("kernel transposed", lambda kernel: kernel.t())
TRANSPOSE_CONV = Conversion("kernel transposed", lambda kernel: kernel.permute(3, 2, 0, 1))
JOIN_KERNELS = Conversion(
    "heads folded, kernel transposed, q, k and v joined",
    lambda *qkv: torch.cat([kernel.flatten(1).T for kernel in qkv]),  # each (D, h, d) to (D, D)
)
JOIN_BIASES = Conversion("heads folded, q, k and v joined", lambda *qkv: torch.cat(qkv).flatten())
FOLD_OUT_KERNEL = Conversion("heads folded, kernel transposed", lambda k: k.flatten(0, 1).T)
ZERO_CLASS_POSITION = Conversion(
    "zero position put before the patches: this model adds none to its class token",
    lambda patches: torch.cat((torch.zeros_like(patches[:, :1]), patches), dim=1),
)


def _norm(source: str, target: str) -> tuple[Rule, ...]:
    return rename(f"{source}/scale", f"{target}.weight"), rename(f"{source}/bias", f"{target}.bias")


def _dense(source: str, target: str, kernel: Conversion = TRANSPOSE) -> tuple[Rule, ...]:
    return (
        rename(f"{source}/kernel", f"{target}.weight", kernel),
        rename(f"{source}/bias", f"{target}.bias"),
    )


def _layout(name: str, pos: Rule, *, attention: int, norm2: int, mlp: int) -> Layout:
    """Layout of one of Google's two code bases, with its rule for the position embedding.

    The numbers are those of modules in a block, which Flax counts in the order of their creation.
    """
    block = "Transformer/encoderblock_{n}"
    attn = f"{block}/MultiHeadDotProductAttention_{attention}"
    projections = [f"{attn}/{part}" for part in ("query", "key", "value")]
    kernels, biases = ([f"{p}/{end}" for p in projections] for end in ("kernel", "bias"))
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
            pos,
        ),
        unsupported={
            r"MAPHead_\d": "attention pooling (MAP head)",
            r"(conv_root|gn_root|block\d/unit\d)": "a convolutional stem (hybrid)",
            r"^(params/)?txt/": "a text tower",
        },
        assumed={
            "norm_eps": (1e-6, "flax's nn.LayerNorm"),
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
BIG_VISION = _layout(
    "big_vision",
    rename("pos_embedding", "pos_embed", ZERO_CLASS_POSITION),
    attention=0,
    norm2=1,
    mlp=0,
)

"""Tensor names of torchvision 0.29."""

from vit_export.checkpoint.layouts.rules import Layout, rename

_BLOCK = "encoder.layers.encoder_layer_{n}"

TORCHVISION = Layout(
    name="torchvision",
    rules=(
        rename("class_token", "cls_token"),
        rename("encoder.pos_embedding", "pos_embed"),
        rename("conv_proj.{p}", "patch_embed.proj.{p}"),
        rename(f"{_BLOCK}.ln_1.{{p}}", "blocks.{n}.norm1.{p}"),
        rename(f"{_BLOCK}.self_attention.in_proj_{{p}}", "blocks.{n}.attn.qkv.{p}"),
        rename(f"{_BLOCK}.self_attention.out_proj.{{p}}", "blocks.{n}.attn.proj.{p}"),
        rename(f"{_BLOCK}.ln_2.{{p}}", "blocks.{n}.norm2.{p}"),
        rename(f"{_BLOCK}.mlp.0.{{p}}", "blocks.{n}.mlp.fc1.{p}"),
        rename(f"{_BLOCK}.mlp.3.{{p}}", "blocks.{n}.mlp.fc2.{p}"),
        rename(f"{_BLOCK}.mlp.linear_1.{{p}}", "blocks.{n}.mlp.fc1.{p}"),
        rename(f"{_BLOCK}.mlp.linear_2.{{p}}", "blocks.{n}.mlp.fc2.{p}"),
        rename("encoder.ln.{p}", "norm.{p}"),
        rename("heads.pre_logits.{p}", "pre_logits.fc.{p}"),
        rename("heads.head.{p}", "head.{p}"),
        # heads that were replaced after training
        *(rename(f"{form}.{{p}}", "head.{p}") for form in ("heads", "heads.{i}", "heads.head.{i}")),
    ),
    unsupported={r"^conv_proj\.(conv_bn|\d)": "a convolutional stem"},
    assumed={"norm_eps": (1e-6, "torchvision's default")},
)

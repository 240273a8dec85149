"""Tensor names of OpenCLIP and OpenAI's CLIP: the image tower, `visual.*` of a whole model."""

from vit_export.checkpoint.layouts.huggingface_clip import AS_POSITIONS, AS_TOKEN
from vit_export.checkpoint.layouts.rules import TRANSPOSE, Cue, Layout, rename

_BLOCK = "transformer.resblocks.{n}"

OPENCLIP = Layout(
    name="openclip",
    required=("class_embedding", "conv1.weight", "positional_embedding"),
    rules=(
        rename("class_embedding", "cls_token", AS_TOKEN),
        rename("positional_embedding", "pos_embed", AS_POSITIONS),
        rename("conv1.{p}", "patch_embed.proj.{p}"),
        rename("ln_pre.{p}", "norm_pre.{p}"),
        rename(f"{_BLOCK}.ln_1.{{p}}", "blocks.{n}.norm1.{p}"),
        rename(f"{_BLOCK}.attn.in_proj_{{p}}", "blocks.{n}.attn.qkv.{p}"),
        rename(f"{_BLOCK}.attn.out_proj.{{p}}", "blocks.{n}.attn.proj.{p}"),
        rename(f"{_BLOCK}.ls_1.gamma", "blocks.{n}.ls1.gamma"),
        rename(f"{_BLOCK}.ln_2.{{p}}", "blocks.{n}.norm2.{p}"),
        rename(f"{_BLOCK}.mlp.c_fc.{{p}}", "blocks.{n}.mlp.fc1.{p}"),
        rename(f"{_BLOCK}.mlp.c_proj.{{p}}", "blocks.{n}.mlp.fc2.{p}"),
        rename(f"{_BLOCK}.ls_2.gamma", "blocks.{n}.ls2.gamma"),
        rename("ln_post.{p}", "norm.{p}"),
        rename("proj", "projection.weight", TRANSPOSE),
    ),
    unsupported={r"^attn_pool": "attention pooling (CoCa)"},
    cues=(
        Cue(
            having=("class_embedding",),
            asked={"act_layer": "quick_gelu (OpenAI, MetaCLIP, DFN) or gelu (LAION, DataComp)"},
        ),
    ),
    assumed={"norm_eps": (1e-5, "OpenCLIP's LayerNorm")},
)

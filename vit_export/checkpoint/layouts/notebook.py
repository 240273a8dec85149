"""Tensor names of the `nn.TransformerEncoder` models of teaching notebooks."""

from vit_export.checkpoint.layouts.rules import Conversion, Layout, rename

CLASS_POSITION_FIRST = Conversion(
    "class token's position moved from the last place to the first",
    lambda positions: positions.roll(1, dims=1),
)

_BLOCK = "encoder_layers.layers.{n}"

TRANSFORMER_ENCODER = Layout(
    name="transformer_encoder",
    rules=(
        rename("patch_embeddings.cls_token", "cls_token"),
        rename("patch_embeddings.pos_embedding", "pos_embed", CLASS_POSITION_FIRST),
        rename("patch_embeddings.patcher.0.{p}", "patch_embed.proj.{p}"),
        rename(f"{_BLOCK}.norm1.{{p}}", "blocks.{n}.norm1.{p}"),
        rename(f"{_BLOCK}.self_attn.in_proj_{{p}}", "blocks.{n}.attn.qkv.{p}"),
        rename(f"{_BLOCK}.self_attn.out_proj.{{p}}", "blocks.{n}.attn.proj.{p}"),
        rename(f"{_BLOCK}.norm2.{{p}}", "blocks.{n}.norm2.{p}"),
        rename(f"{_BLOCK}.linear1.{{p}}", "blocks.{n}.mlp.fc1.{p}"),
        rename(f"{_BLOCK}.linear2.{{p}}", "blocks.{n}.mlp.fc2.{p}"),
        rename("MLP.0.{p}", "norm.{p}"),
        rename("MLP.1.{p}", "head.{p}"),
    ),
    unsupported={r"^encoder_layers\.norm\.": "a norm of the encoder besides the head's"},
    heads_in_table=False,
    assumed={
        "norm_eps": (1e-5, "nn.LayerNorm's default"),
        "read_token": (1, "these notebooks, which append the class token and read the first patch"),
        "act_layer": ("gelu", "these notebooks, which set norm_first=True and activation='gelu'"),
    },
)

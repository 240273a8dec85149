"""Tensor names of Hugging Face transformers: the image towers of CLIP and SigLIP."""

import torch

from vit_export.checkpoint.layouts.rules import JOIN_QKV, Conversion, Cue, Layout, Rule, rename

AS_TOKEN = Conversion("shaped as a token", lambda vector: vector.reshape(1, 1, -1))
AS_POSITIONS = Conversion("shaped as positions", lambda table: table.unsqueeze(0))
QUERY = Conversion("the query's third", lambda joined: joined.chunk(3)[0])
KEY_AND_VALUE = Conversion(
    "key's and value's thirds", lambda joined: torch.cat(joined.chunk(3)[1:])
)
_BLOCK = "encoder.layers.{n}"
_HEAD = "classifier.weight"
_PROBE = "head.probe"
_CLASS = "embeddings.class_embedding"
_TEXT = (r"text_model\.", r"text_projection\.weight$", r"logit_(scale|bias)$")
_ENCODER = (
    rename("embeddings.patch_embedding.{p}", "patch_embed.proj.{p}"),
    rename("embeddings.position_embedding.weight", "pos_embed", AS_POSITIONS),
    rename(f"{_BLOCK}.layer_norm1.{{p}}", "blocks.{n}.norm1.{p}"),
    Rule(
        tuple(f"{_BLOCK}.self_attn.{x}_proj.{{p}}" for x in "qkv"),
        "blocks.{n}.attn.qkv.{p}",
        JOIN_QKV,
    ),
    rename(f"{_BLOCK}.self_attn.out_proj.{{p}}", "blocks.{n}.attn.proj.{p}"),
    rename(f"{_BLOCK}.layer_norm2.{{p}}", "blocks.{n}.norm2.{p}"),
    rename(f"{_BLOCK}.mlp.fc1.{{p}}", "blocks.{n}.mlp.fc1.{p}"),
    rename(f"{_BLOCK}.mlp.fc2.{{p}}", "blocks.{n}.mlp.fc2.{p}"),
    rename("classifier.{p}", "head.{p}"),
)
_NO_ANTIALIAS = {"interpolate_antialias": (False, "Hugging Face")}

HUGGINGFACE_CLIP = Layout(
    name="huggingface_clip",
    prefix=r"(?:vision_model\.)?",
    required=(_CLASS,),
    rules=(
        rename(_CLASS, "cls_token", AS_TOKEN),
        *_ENCODER,
        rename("pre_layrnorm.{p}", "norm_pre.{p}"),
        Rule(("post_layernorm.{p}",), "norm.{p}", unless=(_HEAD,)),
        rename("visual_projection.weight", "projection.weight"),
    ),
    ignored=("embeddings.position_ids", "post_layernorm.{p}"),
    others=_TEXT,
    cues=(
        Cue(
            having=(_HEAD,),
            fields={
                "global_pool": ("avg", "Hugging Face's CLIPForImageClassification"),
                "final_norm": (False, "Hugging Face's CLIPForImageClassification"),
            },
        ),
        Cue(
            having=(_CLASS,),
            fields=_NO_ANTIALIAS,
            asked={"act_layer": "quick_gelu (OpenAI, MetaCLIP, DFN) or gelu (LAION, DataComp)"},
        ),
    ),
    assumed={"norm_eps": (1e-5, "the default of Hugging Face's CLIPVisionModel")},
)
HUGGINGFACE_SIGLIP = Layout(
    name="huggingface_siglip",
    prefix=r"(?:vision_model\.)?",
    required=("embeddings.position_embedding.weight", "post_layernorm.weight"),
    rules=(
        *_ENCODER,
        rename("post_layernorm.{p}", "norm.{p}"),
        Rule((_PROBE,), "attn_pool.latent", unless=(_HEAD,)),
        *(
            rule
            for p in ("weight", "bias")
            for rule in (
                Rule((f"head.attention.in_proj_{p}",), f"attn_pool.q.{p}", QUERY, unless=(_HEAD,)),
                Rule(
                    (f"head.attention.in_proj_{p}",),
                    f"attn_pool.kv.{p}",
                    KEY_AND_VALUE,
                    unless=(_HEAD,),
                ),
            )
        ),
        Rule(("head.attention.out_proj.{p}",), "attn_pool.proj.{p}", unless=(_HEAD,)),
        Rule(("head.layernorm.{p}",), "attn_pool.norm.{p}", unless=(_HEAD,)),
        Rule(("head.mlp.fc1.{p}",), "attn_pool.mlp.fc1.{p}", unless=(_HEAD,)),
        Rule(("head.mlp.fc2.{p}",), "attn_pool.mlp.fc2.{p}", unless=(_HEAD,)),
    ),
    ignored=("embeddings.position_ids",),
    others=(*_TEXT, r"(vision_model\.)?head\."),
    cues=(
        Cue(
            having=(_HEAD,),
            fields={"global_pool": ("avg", "Hugging Face's SiglipForImageClassification")},
        ),
        Cue(having=(), fields=_NO_ANTIALIAS),
    ),
    assumed={
        "norm_eps": (1e-6, "the default of Hugging Face's SiglipVisionModel"),
        "act_layer": ("gelu_tanh", "the default of Hugging Face's SiglipVisionModel"),
    },
)

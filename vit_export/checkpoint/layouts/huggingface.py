"""Tensor names of Hugging Face transformers: ViT and DeiT.

Version 5 renamed its modules in memory, and still writes the names of version 4 to files.
"""

from vit_export.checkpoint.layouts.rules import JOIN_QKV, Layout, Rule, rename

_DISTILLATION_TOKEN = "embeddings.distillation_token"
_TEACHER = "cls_classifier.weight"
_V4, _V5 = "encoder.layer.{n}", "layers.{n}"

HUGGING_FACE = Layout(
    name="huggingface",
    prefix=r"(?:vit\.|deit\.|ijepa\.)?",
    rules=(
        rename("embeddings.cls_token", "cls_token"),
        # only DeiTForImageClassificationWithTeacher reads its distillation token
        Rule((_DISTILLATION_TOKEN,), "dist_token", when=_TEACHER),
        Rule((_DISTILLATION_TOKEN,), "reg_token", unless=(_TEACHER,)),
        rename("embeddings.position_embeddings", "pos_embed"),
        rename("embeddings.patch_embeddings.projection.{p}", "patch_embed.proj.{p}"),
        # transformers 4, and the files that 5 writes
        Rule(
            tuple(f"{_V4}.attention.attention.{x}.{{p}}" for x in ("query", "key", "value")),
            "blocks.{n}.attn.qkv.{p}",
            JOIN_QKV,
        ),
        rename(f"{_V4}.attention.output.dense.{{p}}", "blocks.{n}.attn.proj.{p}"),
        rename(f"{_V4}.layernorm_before.{{p}}", "blocks.{n}.norm1.{p}"),
        rename(f"{_V4}.layernorm_after.{{p}}", "blocks.{n}.norm2.{p}"),
        rename(f"{_V4}.intermediate.dense.{{p}}", "blocks.{n}.mlp.fc1.{p}"),
        rename(f"{_V4}.output.dense.{{p}}", "blocks.{n}.mlp.fc2.{p}"),
        # transformers 5 in memory
        Rule(
            tuple(f"{_V5}.attention.{x}_proj.{{p}}" for x in "qkv"),
            "blocks.{n}.attn.qkv.{p}",
            JOIN_QKV,
        ),
        rename(f"{_V5}.attention.o_proj.{{p}}", "blocks.{n}.attn.proj.{p}"),
        rename(f"{_V5}.layernorm_before.{{p}}", "blocks.{n}.norm1.{p}"),
        rename(f"{_V5}.layernorm_after.{{p}}", "blocks.{n}.norm2.{p}"),
        rename(f"{_V5}.mlp.fc1.{{p}}", "blocks.{n}.mlp.fc1.{p}"),
        rename(f"{_V5}.mlp.fc2.{{p}}", "blocks.{n}.mlp.fc2.{p}"),
        rename("layernorm.{p}", "norm.{p}"),
        # classifiers have no pooler
        Rule(("pooler.dense.{p}",), "pre_logits.fc.{p}", unless=("classifier.weight", _TEACHER)),
        rename("classifier.{p}", "head.{p}"),
        rename("cls_classifier.{p}", "head.{p}"),
        rename("distillation_classifier.{p}", "head_dist.{p}"),
    ),
    ignored=("pooler.dense.{p}", "embeddings.mask_token"),
    unsupported={
        r"layer_scale|lambda_\d": "layer scale",
        r"relative_position": "relative positions",
    },
    others=(r"decoder\.",),  # of ViTMAEForPreTraining and ViTForMaskedImageModeling
    assumed={"norm_eps": (1e-12, "the default of Hugging Face's ViT")},
)

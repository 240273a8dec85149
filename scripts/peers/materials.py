"""Write what every candidate gets: the same weights in two layouts, and photographs.

python -m peers.materials VARIANT FOLDER PHOTOGRAPHS

`weights.safetensors` has timm's names, `hugging_face/` is a folder as `from_pretrained` reads it,
and `photographs/` holds JPEG files of 640 x 480.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images

from vit_export.model.vit import create_model
from vit_export.variants import ViTConfig, get_variant

SIZE = (640, 480)
NAMES = {  # in a block: timm's, Hugging Face's
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
TOP_NAMES = {
    "cls_token": "vit.embeddings.cls_token",
    "pos_embed": "vit.embeddings.position_embeddings",
    "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
    "norm": "vit.layernorm",
    "head": "classifier",
}


def random_weights(config: ViTConfig) -> dict[str, torch.Tensor]:
    """Return seeded weights with every parameter perturbed: a lost zero bias would go unnoticed."""
    model = create_model(config, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model.state_dict()


def hugging_face_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the same tensors under the names that Hugging Face's ViT has in files."""
    renamed = {}
    for name, tensor in weights.items():
        module, _, parameter = name.rpartition(".")
        if name in TOP_NAMES:
            renamed[TOP_NAMES[name]] = tensor
        elif module in TOP_NAMES:
            renamed[f"{TOP_NAMES[module]}.{parameter}"] = tensor
        else:
            _, n, inside = module.split(".", 2)
            block = f"vit.encoder.layer.{n}"
            if inside == "attn.qkv":
                for part, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                    renamed[f"{block}.attention.attention.{part}.{parameter}"] = third.contiguous()
            else:
                renamed[f"{block}.{NAMES[inside]}.{parameter}"] = tensor
    return renamed


def write_hugging_face(config: ViTConfig, weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Write weights, `config.json` and `preprocessor_config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(hugging_face_names(weights), folder / "model.safetensors", metadata={"format": "pt"})
    labels = {str(n): f"class {n}" for n in range(config.num_classes)}
    model = {
        "architectures": ["ViTForImageClassification"], "model_type": "vit",
        "hidden_size": config.embed_dim, "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": int(config.embed_dim * config.mlp_ratio), "hidden_act": "gelu",
        "image_size": config.img_size, "patch_size": config.patch_size,
        "num_channels": config.in_chans, "qkv_bias": config.qkv_bias,
        "layer_norm_eps": config.norm_eps, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0, "id2label": labels,
        "label2id": {label: int(n) for n, label in labels.items()},
    }  # fmt: skip
    images = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "do_rescale": True,
        "do_normalize": True, "resample": 2, "rescale_factor": 1 / 255,
        "size": {"height": config.img_size, "width": config.img_size},
        "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(model, indent=1), encoding="utf-8")
    (folder / "preprocessor_config.json").write_text(json.dumps(images, indent=1), encoding="utf-8")


def write_photographs(folder: Path, number: int) -> None:
    """Cut photographs out of the two that scikit-learn ships, at seeded places."""
    folder.mkdir(parents=True, exist_ok=True)
    originals = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    draw = random.Random(0)
    for n in range(number):
        original = originals[n % len(originals)]
        width = draw.randint(original.width // 2, original.width)
        height = width * original.height // original.width
        left = draw.randint(0, original.width - width)
        top = draw.randint(0, original.height - height)
        cut = original.crop((left, top, left + width, top + height))
        cut.resize(SIZE, Image.Resampling.LANCZOS).save(folder / f"{n:03}.jpg", quality=90)


def main() -> None:
    """Do what the module says."""
    variant, folder, number = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    config = get_variant(variant)
    weights = random_weights(config)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "weights.safetensors")
    write_hugging_face(config, weights, folder / "hugging_face")
    write_photographs(folder / "photographs", number)


if __name__ == "__main__":
    main()

"""Tiny models in the names and shapes of the original libraries."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from numpy.typing import NDArray
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn

Arrays = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Size:
    """A tiny architecture."""

    width: int
    depth: int
    heads: int
    patch: int
    height: int
    columns: int
    classes: int
    hidden: int
    channels: int = 3

    @property
    def image(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.height, self.columns


SQUARE = [
    Size(32, 2, 4, 8, 32, 32, 5, 64),
    Size(48, 3, 3, 4, 16, 16, 7, 100, channels=1),
    Size(64, 1, 8, 16, 64, 64, 3, 256),
]
SIZES = [*SQUARE, Size(24, 2, 2, 8, 16, 40, 4, 48)]


def saved(state: Mapping[str, Tensor], folder: Path) -> Path:
    """A safetensors file without anything beside it."""
    path = folder / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


def timm_vit(size: Size, **options: Any) -> TimmViT:
    """A model of timm's."""
    return TimmViT(
        **{
            "img_size": size.image,
            "patch_size": size.patch,
            "in_chans": size.channels,
            "num_classes": size.classes,
            "embed_dim": size.width,
            "depth": size.depth,
            "num_heads": size.heads,
            "mlp_ratio": size.hidden / size.width,
            **options,
        }
    )


def meta_dinov2(size: Size) -> dict[str, Tensor]:
    """Tensors as Meta's DINOv2 names them: timm took its names, but for the mask token."""
    state = timm_vit(size, num_classes=0, init_values=1.0).state_dict()
    return {**state, "mask_token": torch.zeros(1, size.width)}


def meta_dinov3(size: Size) -> dict[str, Tensor]:
    """Tensors as Meta's DINOv3 names them, with the periods of its RoPE instead of positions."""
    state = timm_vit(size, num_classes=0, init_values=1.0).state_dict()
    del state["pos_embed"]
    quarter = size.width // size.heads // 4
    return {
        **state,
        "storage_tokens": torch.randn(1, 4, size.width),
        "mask_token": torch.zeros(1, size.width),
        "rope_embed.periods": 100 ** (torch.arange(quarter) / quarter),
    }


OPENCLIP_NAMES = (
    ("patch_embed.proj.", "conv1."), ("norm_pre.", "ln_pre."),
    ("blocks.", "transformer.resblocks."), (".norm1.", ".ln_1."), (".norm2.", ".ln_2."),
    (".qkv.", ".in_proj_"), ("attn.proj", "attn.out_proj"), (".fc1.", ".c_fc."),
    (".fc2.", ".c_proj."),
)  # fmt: skip


def openclip(size: Size, projection: int = 8) -> dict[str, Tensor]:
    """Tensors of an image tower as OpenCLIP names them: timm's model, renamed."""
    state = {}
    for name, tensor in timm_vit(size, num_classes=0, pre_norm=True).state_dict().items():
        for timm, openclip in OPENCLIP_NAMES:
            name = name.replace(timm, openclip)
        state["ln_post." + name[5:] if name.startswith("norm.") else name] = tensor
    return {
        "class_embedding": state.pop("cls_token").flatten(),
        "positional_embedding": state.pop("pos_embed")[0],
        "proj": torch.randn(size.width, projection),
        **state,
    }


def hf_config(kind: type[Any], size: Size, **options: Any) -> Any:
    """A config of transformers."""
    return kind(
        hidden_size=size.width,
        num_hidden_layers=size.depth,
        num_attention_heads=size.heads,
        intermediate_size=size.hidden,
        image_size=size.image if size.height != size.columns else size.height,
        patch_size=size.patch,
        num_channels=size.channels,
        num_labels=size.classes,
        **options,
    )


def hf_model(name: str, size: Size, **options: Any) -> nn.Module:
    """A model of transformers, by the name of its class."""
    kind = transformers.DeiTConfig if name.startswith("DeiT") else transformers.ViTConfig
    model: nn.Module = getattr(transformers, name)(hf_config(kind, size, **options))
    return model


def hf_family(name: str, size: Size, **options: Any) -> nn.Module:
    """A model of a later family of transformers, by the name of its class."""
    kind = getattr(transformers, name)
    model: nn.Module = kind(hf_config(kind.config_class, size, **options))
    return model


def google_arrays(
    size: Size, *, big_vision: bool, pre_logits: int = 0, pool: str = "tok"
) -> Arrays:
    """Random weights in the names and shapes of the original JAX code."""
    rng = np.random.default_rng(0)
    width, head = size.width, size.width // size.heads
    attention, norm2, mlp = (0, 1, 0) if big_vision else (1, 2, 3)
    patches = math.prod(size.image) // size.patch**2
    shapes: dict[str, tuple[int, ...]] = {
        "cls": (1, 1, width),
        "embedding/kernel": (size.patch, size.patch, size.channels, width),
        "embedding/bias": (width,),
        "Transformer/encoder_norm/scale": (width,),
        "Transformer/encoder_norm/bias": (width,),
        "head/kernel": (pre_logits or width, size.classes),
        "head/bias": (size.classes,),
    }
    if big_vision:
        shapes["pos_embedding"] = (1, patches, width)
    else:
        shapes["Transformer/posembed_input/pos_embedding"] = (1, patches + 1, width)
    if pre_logits:
        shapes |= {"pre_logits/kernel": (width, pre_logits), "pre_logits/bias": (pre_logits,)}
    parts = [(f"Transformer/encoderblock_{n}", attention, norm2, mlp) for n in range(size.depth)]
    if pool == "map":
        del shapes["cls"]
        shapes["MAPHead_0/probe"] = (1, 1, width)
        parts.append(("MAPHead_0", 0, 0, 0))
    for block, attention, norm2, mlp in parts:
        attn = f"{block}/MultiHeadDotProductAttention_{attention}"
        for part in ("query", "key", "value"):
            shapes[f"{attn}/{part}/kernel"] = (width, size.heads, head)
            shapes[f"{attn}/{part}/bias"] = (size.heads, head)
        shapes[f"{attn}/out/kernel"] = (size.heads, head, width)
        shapes[f"{attn}/out/bias"] = (width,)
        for norm in (0, norm2):
            shapes[f"{block}/LayerNorm_{norm}/scale"] = (width,)
            shapes[f"{block}/LayerNorm_{norm}/bias"] = (width,)
        dense = f"{block}/MlpBlock_{mlp}"
        shapes[f"{dense}/Dense_0/kernel"] = (width, size.hidden)
        shapes[f"{dense}/Dense_0/bias"] = (size.hidden,)
        shapes[f"{dense}/Dense_1/kernel"] = (size.hidden, width)
        shapes[f"{dense}/Dense_1/bias"] = (width,)
    return {
        name: (0.2 * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


def google_logits(arrays: Arrays, x: Tensor, size: Size, *, big_vision: bool) -> Tensor:
    """The JAX model written with einsum on its own shapes, channels last, float64."""
    w = {name: torch.from_numpy(array).double() for name, array in arrays.items()}
    attention, norm2, mlp = (0, 1, 0) if big_vision else (1, 2, 3)

    def norm(x: Tensor, name: str) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()
        return x * w[f"{name}/scale"] + w[f"{name}/bias"]

    def dense(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}/kernel"] + w[f"{name}/bias"]

    p, (height, columns) = size.patch, size.image
    cut = x.permute(0, 2, 3, 1).reshape(-1, height // p, p, columns // p, p, size.channels)
    x = torch.einsum("brpcqk,pqkd->brcd", cut, w["embedding/kernel"]) + w["embedding/bias"]
    x = x.flatten(1, 2)
    cls = w["cls"].expand(len(x), -1, -1) if "cls" in w else x[:, :0]
    if big_vision:
        x = torch.cat((cls, x + w["pos_embedding"]), dim=1)
    else:
        x = torch.cat((cls, x), dim=1) + w["Transformer/posembed_input/pos_embedding"]

    def attend(query: Tensor, y: Tensor, attn: str) -> Tensor:
        given = {"query": query, "key": y, "value": y}
        q, k, v = (
            torch.einsum("bnd,dhe->bnhe", z, w[f"{attn}/{part}/kernel"]) + w[f"{attn}/{part}/bias"]
            for part, z in given.items()
        )
        scores = torch.einsum("bnhe,bmhe->bhnm", q, k) / math.sqrt(q.shape[-1])
        y = torch.einsum("bhnm,bmhe->bnhe", scores.softmax(-1), v)
        return torch.einsum("bnhe,hed->bnd", y, w[f"{attn}/out/kernel"]) + w[f"{attn}/out/bias"]

    def mlp_of(y: Tensor, name: str) -> Tensor:
        return dense(F.gelu(dense(y, f"{name}/Dense_0"), approximate="tanh"), f"{name}/Dense_1")

    for n in range(size.depth):
        block = f"Transformer/encoderblock_{n}"
        y = norm(x, f"{block}/LayerNorm_0")
        x = x + attend(y, y, f"{block}/MultiHeadDotProductAttention_{attention}")
        x = x + mlp_of(norm(x, f"{block}/LayerNorm_{norm2}"), f"{block}/MlpBlock_{mlp}")
    x = norm(x, "Transformer/encoder_norm")
    if "MAPHead_0/probe" in w:
        probe = w["MAPHead_0/probe"].expand(len(x), -1, -1)
        x = attend(probe, x, "MAPHead_0/MultiHeadDotProductAttention_0")
        x = x + mlp_of(norm(x, "MAPHead_0/LayerNorm_0"), "MAPHead_0/MlpBlock_0")
    x = x[:, 0]
    if "pre_logits/kernel" in w:
        x = torch.tanh(dense(x, "pre_logits"))
    return dense(x, "head")


class NotebookEmbedding(nn.Module):
    """Patches, then the class token at the end, then positions."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        patches = math.prod(size.image) // size.patch**2
        self.patcher = nn.Sequential(
            nn.Conv2d(size.channels, size.width, kernel_size=size.patch, stride=size.patch),
            nn.Flatten(2),
        )
        self.cls_token = nn.Parameter(torch.randn(1, 1, size.width))
        self.pos_embedding = nn.Parameter(torch.randn(1, patches + 1, size.width))

    def forward(self, x: Tensor) -> Tensor:
        cls = self.cls_token.expand(x.shape[0], -1, -1)
        return torch.cat((self.patcher(x).permute(0, 2, 1), cls), dim=1) + self.pos_embedding


class Notebook(nn.Module):
    """The Vision Transformer of the teaching notebooks: reads token 0, the first patch."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.patch_embeddings = NotebookEmbedding(size)
        layer = nn.TransformerEncoderLayer(
            d_model=size.width,
            nhead=size.heads,
            dim_feedforward=size.hidden,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.encoder_layers = nn.TransformerEncoder(
            layer, num_layers=size.depth, enable_nested_tensor=False
        )
        self.MLP = nn.Sequential(nn.LayerNorm(size.width), nn.Linear(size.width, size.classes))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.MLP(self.encoder_layers(self.patch_embeddings(x))[:, 0, :])
        return logits

"""timm's model with the weights that every candidate gets."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import peers.torchvision_operators  # noqa: F401  (before timm imports torchvision)

# isort: split
import timm
import timm.data
import torch
from PIL.Image import Image
from safetensors.torch import load_file


def timm_model(variant: str, weights: str) -> torch.nn.Module:
    """Return a model in evaluation mode; every tensor must fit."""
    model = timm.create_model(variant, pretrained=False)
    model.load_state_dict(load_file(weights), strict=True)
    return model.eval().requires_grad_(requires_grad=False)


def image_preparation(model: torch.nn.Module) -> Callable[[Image], torch.Tensor]:
    """Return the function of a photograph to pixel values (3, H, W) that timm has for a model."""
    return timm.data.create_transform(**timm.data.resolve_model_data_config(model))


def photograph_loader(
    model: torch.nn.Module, folder: str, batch: int, workers: int
) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """Return batches of the photographs of a folder, as timm's `inference.py` loads them."""
    return timm.data.create_loader(
        timm.data.create_dataset("", root=folder), batch_size=batch, use_prefetcher=False,
        num_workers=workers, **timm.data.resolve_model_data_config(model),
    )  # fmt: skip

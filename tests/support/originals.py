"""Models of the original libraries, tiny and with every parameter perturbed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vit_export.model.vit import VisionTransformer


def _import_torchvision() -> Any:
    """Import torchvision although its wheel may be built for another torch.

    Then its compiled operators are absent; declaring the two that its Python code asks for
    is enough for the models.
    """
    try:
        return None, importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library, importlib.import_module("torchvision")


# the library must stay alive, and both must be there before timm and transformers look
TORCHVISION = _import_torchvision()


def perturb(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter a value of its own: a fresh model has zero biases and unit scales."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference between two outputs, as a part of the largest value."""
    return float(((ours - theirs).abs().max() / theirs.abs().max()).detach())


def images(model: VisionTransformer, batch: int = 2) -> Tensor:
    """Random pictures of a model's size, float64 (B, C, H, W)."""
    config = model.config
    generator = torch.Generator().manual_seed(1)
    shape = (batch, config.in_chans, *config.image_hw)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


Compare = Callable[..., float]


@pytest.fixture
def compare() -> Compare:
    """Distance between our model and an original, both run in float64."""

    def run(
        model: VisionTransformer,
        original: nn.Module,
        read: Callable[[Any], Tensor] = lambda output: output,
    ) -> float:
        x = images(model)
        with torch.no_grad():
            return distance(model.double()(x), read(original.double()(x)))

    return run


@pytest.fixture
def randomised() -> Callable[..., nn.Module]:
    """`perturb`, for tests."""
    return perturb

"""For every layout: a file of the original library is exported to ONNX with the same logits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import layout_models
import numpy as np
import pytest
import timm
import torch
import torchvision
from click.testing import CliRunner
from torch import Tensor, nn

from vit_export.cli.main import main
from vit_export.runtime import load

Original = tuple[Path, Callable[[Tensor], Tensor]]


def _module(original: nn.Module, folder: Path) -> Original:
    return layout_models.saved(original.state_dict(), folder), original.double()


def _hugging_face(name: str) -> Callable[..., Original]:
    def build(size: Any, folder: Path, randomised: Callable[..., nn.Module]) -> Original:
        original = randomised(layout_models.hf_model(name, size))
        original.save_pretrained(folder / "saved")
        original.double()
        return folder / "saved", lambda x: original(x).logits

    return build


def _google(big_vision: bool) -> Callable[..., Original]:
    def build(size: Any, folder: Path, randomised: Callable[..., nn.Module]) -> Original:
        arrays = layout_models.google_arrays(size, big_vision=big_vision, pre_logits=20)
        np.savez(folder / "ViT.npz", **arrays)
        return folder / "ViT.npz", lambda x: layout_models.google_logits(
            arrays, x, size, big_vision=big_vision
        )

    return build


def _timm(size: Any, folder: Path, randomised: Callable[..., nn.Module]) -> Original:
    return _module(randomised(layout_models.timm_vit(size)), folder)


def _dinov2(size: Any, folder: Path, randomised: Callable[..., nn.Module]) -> Original:
    """With registers; it has no head, so its features are compared."""
    options = {"init_values": 0.1, "reg_tokens": 4, "no_embed_class": True, "num_classes": 0}
    return _module(randomised(layout_models.timm_vit(size, **options)), folder)


def _deit(size: Any, folder: Path, randomised: Callable[..., nn.Module]) -> Original:
    original = timm.models.deit.VisionTransformerDistilled(
        img_size=size.image, patch_size=size.patch, in_chans=size.channels, depth=size.depth,
        num_classes=size.classes, embed_dim=size.width, num_heads=size.heads,
        mlp_ratio=size.hidden / size.width,
    )  # fmt: skip
    return _module(randomised(original), folder)


def _torchvision(size: Any, folder: Path, randomised: Callable[..., nn.Module]) -> Original:
    original = torchvision.models.VisionTransformer(
        size.height, size.patch, size.depth, size.heads, size.width, size.hidden,
        num_classes=size.classes,
    )  # fmt: skip
    if size.channels != 3:  # torchvision builds RGB models only
        original.conv_proj = nn.Conv2d(size.channels, size.width, size.patch, size.patch)
    return _module(randomised(original), folder)


def _notebook(size: Any, folder: Path, randomised: Callable[..., nn.Module]) -> Original:
    return _module(randomised(layout_models.Notebook(size)), folder)


LAYOUTS: dict[str, Callable[..., Original]] = {
    "timm": _timm,
    "dinov2": _dinov2,
    "deit": _deit,
    "hf-vit": _hugging_face("ViTForImageClassification"),
    "hf-deit": _hugging_face("DeiTForImageClassificationWithTeacher"),
    "torchvision": _torchvision,
    "google_jax": _google(big_vision=False),
    "big_vision": _google(big_vision=True),
    "notebook": _notebook,
}
SIZE = layout_models.SQUARE[0]


@pytest.mark.parametrize("layout", [
    name if name in ("notebook", "dinov2") else pytest.param(name, marks=pytest.mark.slow)
    for name in LAYOUTS
])  # fmt: skip
def test_onnx_logits_are_those_of_the_original_model(layout, tmp_path, randomised):
    """Within the tolerance of the export, which is measured against our torch model."""
    torch.manual_seed(0)
    source, original = LAYOUTS[layout](SIZE, tmp_path, randomised)
    output = tmp_path / "model.onnx"
    arguments = ["onnx", "--weights", source, "--set", f"num_heads={SIZE.heads}", "-o", output]
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    stage = json.loads(result.stdout.splitlines()[-1])["manifest"]["certificate"][-1]
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(3, SIZE.channels, *SIZE.image, generator=generator) * 2 - 1
    with torch.no_grad():
        expected = original(x.double()).numpy()
    logits = load(output, provider="cpu").run(x.numpy())
    assert np.abs(logits - expected).max() <= stage["tolerance"]

"""A torch model on images in memory: the device, the numbers it reads, its logits."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vit_export.errors import ProviderError, UsageError
from vit_export.images.dataset import Pixels
from vit_export.model.vit import VisionTransformer

EVALUATION_BATCH = 256


def predict_logits(
    model: VisionTransformer, images: Pixels, *, rows: NDArray[np.int64] | None = None
) -> Tensor:
    """Classify images on the device where the model is, and leave it in evaluation mode.

    Args:
        model: A model of the images' size.
        images: uint8 (n, H, W, C).
        rows: Which of them, int64 (m,); all where left out.

    Returns:
        Logits, float32 (m, num_classes), on the CPU.
    """
    model.eval()
    wanted = np.arange(len(images)) if rows is None else rows
    device = model.cls_token.device
    parts = []
    with torch.inference_mode(), autocast(device):
        for start in range(0, len(wanted), EVALUATION_BATCH):
            batch = images[wanted[start : start + EVALUATION_BATCH]]
            parts.append(model(normalized(model, batch)).float().cpu())
    return torch.cat(parts)


def normalized(model: VisionTransformer, images: Pixels) -> Tensor:
    """uint8 (B, H, W, C) as the model wants it: float32 (B, C, H, W), on its device."""
    device = model.cls_token.device
    mean, std = (
        torch.tensor(stats, device=device)[:, None, None]
        for stats in (model.config.mean, model.config.std)
    )
    pixels = torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2)
    return (pixels.float() / 255 - mean) / std


def choose_device(name: str) -> torch.device:
    """Turn `"auto"` (CUDA where there is one), `"cpu"`, `"cuda"` or `"cuda:1"` into a device.

    Raises:
        UsageError: No such kind of device.
        ProviderError: torch has no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device={name!r}: expected auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device={name!r}: expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ProviderError(
            f"cannot train on {name}: torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices here; use --device cpu, or install a "
            "driver and a CUDA build of torch"
        )
    return device


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 on CUDA, whose exponent range needs no loss scaling; float32 elsewhere."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")

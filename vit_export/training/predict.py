"""Choose torch's device, normalise images and compute logits in batches."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vit_export.errors import ProviderError, UsageError, VitExportError
from vit_export.images.decode import Pixels
from vit_export.model.vit import VisionTransformer


def predict_logits(
    model: VisionTransformer,
    images: Pixels,
    *,
    batch_size: int,
    rows: NDArray[np.int64] | None = None,
) -> Tensor:
    """Compute logits, float32 (n, num_classes) on the CPU, of images, uint8 (n, H, W, C).

    `rows` chooses images. The model computes on its device, and stays in evaluation mode.
    """
    model.eval()
    chosen = np.arange(len(images)) if rows is None else rows
    device = model.patch_embed.proj.weight.device
    parts = []
    with torch.inference_mode(), autocast(device):
        for start in range(0, len(chosen), batch_size):
            batch = images[chosen[start : start + batch_size]]
            parts.append(model(normalized(model, batch)).float().cpu())
    return torch.cat(parts)


def normalized(model: VisionTransformer, images: Pixels) -> Tensor:
    """Normalise uint8 (B, H, W, C) to float32 (B, C, H, W) on the model's device."""
    device = model.patch_embed.proj.weight.device
    mean, std = (
        torch.tensor(stats, device=device)[:, None, None]
        for stats in (model.config.mean, model.config.std)
    )
    pixels = torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2)
    return (pixels.float() / 255 - mean) / std


def choose_device(name: str) -> torch.device:
    """Turn `"auto"` (CUDA where there is one), `"cpu"`, `"cuda"` or `"cuda:1"` into a device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UsageError(f"device={name!r}: expected auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ProviderError(
            f"cannot train on {name}: torch {torch.__version__} finds "
            f"{torch.cuda.device_count()} CUDA devices",
            hint="use --device cpu, or install a driver and a CUDA build of torch",
        )
    return device


def autocast(device: torch.device) -> torch.autocast:
    """Use bfloat16 on CUDA, whose exponent range needs no loss scaling; float32 elsewhere."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


@contextmanager
def memory_errors(device: torch.device, batch_size: int) -> Iterator[None]:
    """Turn torch's out-of-memory errors, of a GPU or the CPU, into one with a hint."""
    try:
        yield
    except RuntimeError as error:
        on_gpu = isinstance(error, torch.OutOfMemoryError)
        if not on_gpu and "DefaultCPUAllocator" not in str(error):
            raise
        raise VitExportError(
            f"training on {device} ran out of memory with batches of {batch_size} images",
            hint=f"try --batch-size {batch_size // 2}" if batch_size > 1 else "",
        ) from error

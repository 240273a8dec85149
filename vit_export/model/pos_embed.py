"""Position embeddings of one grid of patches, resampled to another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GridHW = tuple[int, int]


def resample_pos_embed(
    pos_embed: Tensor, *, source: GridHW, target: GridHW, num_prefix_tokens: int
) -> Tensor:
    """Resample the positions of patches; those of prefix tokens stay as they are.

    Bicubic with antialiasing, in float32, as timm's `resample_abs_pos_embed` does it.

    Args:
        pos_embed: (1, prefix + rows * columns, D), prefix tokens first.
        source: Rows and columns of the grid that it was trained for.
        target: Rows and columns wanted.
        num_prefix_tokens: How many rows belong to the class and distillation tokens.

    Returns:
        (1, prefix + target rows * target columns, D), in the dtype of `pos_embed`.
    """
    if source == target:
        return pos_embed
    prefix, patches = pos_embed[:, :num_prefix_tokens], pos_embed[:, num_prefix_tokens:]
    grid = patches.float().reshape(1, *source, -1).permute(0, 3, 1, 2)  # (1, D, rows, columns)
    grid = F.interpolate(grid, size=target, mode="bicubic", antialias=True)
    patches = grid.permute(0, 2, 3, 1).flatten(1, 2).to(pos_embed.dtype)
    return torch.cat((prefix, patches), dim=1)

"""Resample position embeddings from one grid of patches to another."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def resample_pos_embed(
    pos_embed: Tensor, *, source: Sequence[int], target: Sequence[int], num_prefix_tokens: int
) -> Tensor:
    """Resample E_pos (1, N, D) from one grid of patches (rows, columns) to another, in float32.

    The prefix tokens come first, and their positions stay. As timm's `resample_abs_pos_embed`.
    """
    if tuple(source) == tuple(target):
        return pos_embed
    prefix, patches = pos_embed[:, :num_prefix_tokens], pos_embed[:, num_prefix_tokens:]
    patches = resample_grid(patches.float(), source=source, target=target).to(pos_embed.dtype)
    return torch.cat((prefix, patches), dim=1)


def resample_grid(patches: Tensor, *, source: Sequence[int], target: Sequence[int]) -> Tensor:
    """Resample (1, rows * columns, D) to another grid: bicubic with antialiasing."""
    grid = patches.unflatten(1, tuple(source)).permute(0, 3, 1, 2)  # (1, D, rows, columns)
    grid = F.interpolate(grid, size=tuple(target), mode="bicubic", antialias=True)
    return grid.flatten(2).transpose(1, 2)

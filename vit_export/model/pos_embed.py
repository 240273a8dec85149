"""Resample position embeddings from one grid of patches to another."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_export.variants import ViTConfig


def resample_pos_embed(pos_embed: Tensor, *, source: Sequence[int], config: ViTConfig) -> Tensor:
    """Resample E_pos from a grid of patches (rows, columns) to that of the config, in float32.

    Positions of prefix tokens come first, and stay.
    """
    if tuple(source) == config.grid_hw:
        return pos_embed
    num_prefix = config.num_prefix_positions
    prefix, patches = pos_embed[:, :num_prefix], pos_embed[:, num_prefix:]
    patches = resample_grid(patches.float(), source=source, target=config.grid_hw, config=config)
    return torch.cat((prefix, patches.to(pos_embed.dtype)), dim=1)


def resample_grid(
    patches: Tensor, *, source: Sequence[int], target: Sequence[int], config: ViTConfig
) -> Tensor:
    """Resample (1, rows * columns, D) to another grid, bicubic.

    With antialiasing as timm's `resample_abs_pos_embed`, without as Hugging Face's models, and
    with an offset as DINO's and DINOv2's `interpolate_pos_encoding`, which scale a grid to a little
    more than the number of patches.
    """
    grid = patches.unflatten(1, tuple(source)).permute(0, 3, 1, 2)  # (1, D, rows, columns)
    antialias, offset = config.interpolate_antialias, config.interpolate_offset
    if offset:
        factors = [(new + offset) / old for new, old in zip(target, source, strict=True)]
        grid = F.interpolate(grid, scale_factor=factors, mode="bicubic", antialias=antialias)
    else:
        grid = F.interpolate(grid, size=tuple(target), mode="bicubic", antialias=antialias)
    return grid.flatten(2).transpose(1, 2)

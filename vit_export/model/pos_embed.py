"""Position embeddings of one grid of patches, resampled to another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_export.errors import CheckpointError
from vit_export.variants import ViTConfig

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


def trained_size(
    pos_embed: Tensor | None,
    seen: Mapping[str, Any],
    told: Mapping[str, Any],
    *,
    source: str,
) -> int | tuple[int, int] | None:
    """The image size that a position embedding was trained for.

    A number of patches tells a square grid; of others it tells only the product of rows and
    columns. A size that was told decides where it makes that many patches; a square grid is
    believed before a size that the user wants, which may be another one by intention.

    Args:
        pos_embed: (1, N, D), prefix tokens first.
        seen: Config fields that the file shows: `patch_size`, `distilled`.
        told: Who names a size, and the size (or None), the most trusted first; the last is
            the size wanted.
        source: Name of the file, for messages.

    Returns:
        Pixels, as in `ViTConfig.img_size`; None where there are no positions to tell it.

    Raises:
        CheckpointError: The grid is not square, and nothing tells which it is.
    """
    if pos_embed is None or pos_embed.ndim != 3 or "patch_size" not in seen:
        return None
    patch, patches = seen["patch_size"], pos_embed.shape[1] - (2 if seen["distilled"] else 1)
    if patches < 1:
        return None
    grids = [_grid(size, patch=patch, patches=patches) for size in told.values()]
    square = math.isqrt(patches)
    if square * square == patches:
        grids.insert(len(grids) - 1, (square, square))
    for grid in grids:
        if grid is not None:
            rows, columns = grid
            return rows * patch if rows == columns else (rows * patch, columns * patch)
    pairs = [(r, patches // r) for r in range(1, square + 1) if patches % r == 0]
    sizes = ", ".join(f"{r * patch}x{c * patch}" for r, c in reversed(pairs))
    raise CheckpointError(
        f"{source}: its {patches} patch positions make no square grid, and nothing says which "
        "grid they make. Give the size of the images it was trained on with --img-size "
        f"HEIGHTxWIDTH (one of {sizes} px, or height and width exchanged)"
    )


def _grid(size: Any, *, patch: int, patches: int) -> GridHW | None:
    """Rows and columns of an image of this size, if they make that many patches."""
    if size is None:
        return None
    plain = ViTConfig(variant="", img_size=1, patch_size=1)
    height, width = plain.replace({"img_size": size}).image_hw
    rows, columns = height // patch, width // patch
    return (rows, columns) if rows * columns == patches else None

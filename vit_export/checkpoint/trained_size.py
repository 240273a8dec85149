"""The image size that a position embedding was trained for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vit_export.errors import CheckpointError
from vit_export.variants import parse_field

SizePx = int | tuple[int, int]


def trained_size(
    pos_embed: Tensor | None,
    *,
    patch_size: int,
    num_prefix_tokens: int,
    sizes: Mapping[str, Any],
    source: str,
) -> tuple[SizePx, str] | None:
    """Find the image size whose patches are as many as the positions.

    A position embedding shows the number of patches, not its rows and columns. So the first
    stated size that makes as many patches is taken, or else the square one.

    Args:
        pos_embed: (1, N, D), prefix tokens first.
        patch_size: In pixels.
        num_prefix_tokens: 1, or 2 for a distilled model.
        sizes: Stated image sizes or None, by who states them; the most trusted first.
        source: Name of the file, for messages.

    Returns:
        Size in pixels and who stated it, "" for the square one; None without positions.

    Raises:
        CheckpointError: No stated size fits, and the number of patches is no square.
    """
    if pos_embed is None or pos_embed.ndim != 3 or pos_embed.shape[1] <= num_prefix_tokens:
        return None
    positions = pos_embed.shape[1]
    patches = positions - num_prefix_tokens
    for origin, size in sizes.items():
        size = parse_field("img_size", size or 0, 0)
        height, width = size if isinstance(size, tuple) else (size, size)
        fits = height % patch_size == width % patch_size == 0
        if fits and height * width == patches * patch_size**2:
            return size, origin
    side = math.isqrt(patches)
    if side * side == patches:
        return side * patch_size, ""
    rows = [n for n in range(side, 0, -1) if patches % n == 0]
    sizes_px = ", ".join(f"{n * patch_size}x{patches // n * patch_size}" for n in rows)
    message = (
        f"{source}: pos_embed has positions for {patches} patches, which make no square image, and "
        "no other size is known"
    )
    hint = (
        "give the image size that the model was trained on with --img-size HEIGHTxWIDTH (one of "
        f"{sizes_px} px, or height and width exchanged)"
    )
    side = math.isqrt(positions)
    if side * side == positions:
        message += (
            f". Or its {positions} positions are {side} x {side} patches and none of them belongs "
            "to the class token (timm's no_embed_class, e.g. FlexiViT), which is not supported"
        )
        hint += "; export a model of the other kind with --module package.module:factory"
    raise CheckpointError(message, hint=hint)

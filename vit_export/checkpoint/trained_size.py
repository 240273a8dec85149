"""The image size that a position embedding was trained for."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vit_export.errors import CheckpointError
from vit_export.variants import parse_field


def trained_size(
    pos_embed: Tensor | None,
    *,
    patch_size: int,
    num_prefix_tokens: int,
    sizes: Mapping[str, Any],  # in pixels or None, by who states them; the most trusted first
    source: str,
) -> tuple[int | tuple[int, int], str] | None:
    """Find the image size in pixels whose patches are as many as the positions (1, N, D).

    A position embedding shows the number of patches, not its rows and columns. So the first
    stated size that makes as many patches is taken, with who states it, or else the square one,
    with "". Without positions the result is None.
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

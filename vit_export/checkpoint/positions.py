"""What the shape of a position embedding says: the image size, and which tokens have a position."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vit_export.errors import CheckpointError
from vit_export.variants import parse_field

Size = int | tuple[int, int]  # px; (height, width) when not square


@dataclass(frozen=True)
class Trained:
    """What a model was trained with."""

    img_size: Size
    origin: str  # who states the size; "" where the number of positions makes a square image
    no_embed_class: bool  # only patches have positions
    cut_edges: bool = False  # the size is no multiple of the patches: the rest is not read


def trained_positions(
    pos_embed: Tensor | None,
    fields: Mapping[str, Any],  # of `fields_from_shapes`
    *,
    sizes: Mapping[str, Any],  # in pixels or None, by who states them; the most trusted first
    wanted: str,  # the one of them whose size may be the size wanted
    no_embed_class: bool | None,  # where it is known
    source: str,
) -> Trained | None:
    """Find the image size whose patches are as many as the positions (1, N, D).

    A position embedding shows how many positions there are, not their rows and columns, nor whether
    the tokens before the patches have one. So the first stated size that makes as many patches is
    taken, or else the square one. Without positions the result is None.
    """
    if pos_embed is None or pos_embed.ndim != 3 or "patch_size" not in fields:
        return None
    positions, patch = pos_embed.shape[1], fields["patch_size"]
    prefix = fields["class_token"] + fields["distilled"] + fields["reg_tokens"]
    embeds = [False, True] if no_embed_class is None and prefix else [bool(no_embed_class)]
    counts = {n: positions - (0 if n else prefix) for n in embeds}  # of patches
    counts = {none: count for none, count in counts.items() if count > 0}
    if not counts:
        return None
    squares = {none: side for none, n in counts.items() if (side := math.isqrt(n)) ** 2 == n}
    for origin, size in sizes.items():
        size = parse_field("img_size", size or 0, 0)
        height, width = size if isinstance(size, tuple) else (size, size)
        for none, count in counts.items():
            if (height // patch) * (width // patch) != count:
                continue
            cut_edges = bool(height % patch or width % patch)
            if cut_edges and origin == wanted:
                continue
            if origin == wanted and (not none) in squares:
                raise _ambiguous(positions, (height // patch, width // patch), squares, source)
            return Trained(size, origin, none, cut_edges)
    if len(squares) == 1:
        none, side = next(iter(squares.items()))
        return Trained(side * patch, "", none)
    if squares:
        raise _ambiguous(positions, None, squares, source)
    raise _unknown_size(counts, patch, fields["class_token"], source)


def _ambiguous(
    positions: int, grid: tuple[int, int] | None, squares: Mapping[bool, int], source: str
) -> CheckpointError:
    shown = [f"{side} x {side} patches" for side in squares.values()]
    shown += [f"{grid[0]} x {grid[1]} patches and the tokens before them"] if grid else []
    return CheckpointError(
        f"{source}: its {positions} positions may be those of {' or of '.join(shown)}",
        hint="say whether only patches have a position: --set no_embed_class=true (FlexiViT, "
        "DeiT III), or --set no_embed_class=false",
    )


def _unknown_size(
    counts: Mapping[bool, int], patch: int, class_token: bool, source: str
) -> CheckpointError:
    patches = next(iter(counts.values()))
    rows = [n for n in range(math.isqrt(patches), 0, -1) if patches % n == 0]
    sizes_px = ", ".join(f"{n * patch}x{patches // n * patch}" for n in rows)
    lost = "" if class_token else ". It holds no class token; a file that lost one is not complete"
    return CheckpointError(
        f"{source}: pos_embed has positions for {patches} patches, which make no square image, and "
        f"no other size is known{lost}",
        hint="give the image size that the model was trained on with --img-size HEIGHTxWIDTH (one "
        f"of {sizes_px} px, or height and width exchanged)",
    )

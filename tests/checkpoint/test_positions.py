"""What a position embedding shows of the image size and of the tokens before the patches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vit_export.checkpoint.positions import Trained, trained_positions
from vit_export.errors import CheckpointError


def positions(
    count: int, *, prefix: int = 1, no_embed_class: bool | None = None, **sizes: Any
) -> Trained | None:
    """What a model with patches of 8 px was trained with; one size may be that of `user`."""
    fields = {"patch_size": 8, "class_token": prefix > 0, "distilled": False}
    return trained_positions(
        torch.empty(1, count, 8),
        {**fields, "reg_tokens": max(0, prefix - 1)},
        sizes=sizes,
        wanted="user",
        no_embed_class=no_embed_class,
        source="x",
    )


@pytest.mark.parametrize(
    ("patches", "sizes", "expected"),
    [
        (16, {}, (32, "")),
        (16, {"config": None, "user": (24, 64)}, (32, "")),
        (16, {"config": (16, 64), "user": (32, 32)}, ((16, 64), "config")),
        (16, {"config": (8, 8), "user": "64x16"}, ((64, 16), "user")),
        (16, {"user": (130, 12)}, (32, "")),  # 16 patches only after rounding down
        (10, {"config": (16, 40), "user": (40, 16)}, ((16, 40), "config")),
        (10, {"user": "40x16"}, ((40, 16), "user")),
    ],
)
def test_the_first_size_with_as_many_patches_is_taken_and_else_a_square(
    patches: int, sizes: dict[str, Any], expected: Any
) -> None:
    """A position embedding shows only the number of patches."""
    assert positions(1 + patches, **sizes) == Trained(*expected, False)


@pytest.mark.parametrize(
    ("count", "prefix", "side"), [(225, 1, 15), (196, 1, 14), (1369, 5, 37), (49, 4, 7)]
)
def test_positions_that_only_patches_have_make_a_square_without_the_other_tokens(
    count: int, prefix: int, side: int
) -> None:
    """FlexiViT, DeiT III, DINOv2 with registers."""
    assert positions(count, prefix=prefix) == Trained(8 * side, "", True)


def test_a_wanted_size_that_fits_in_one_way_of_two_is_not_guessed() -> None:
    """15 x 15 patches (FlexiViT), or 14 x 16 and a class token: 225 positions both."""
    with pytest.raises(CheckpointError, match=r"15 x 15 patches or of 14 x 16 patches") as error:
        positions(225, user="112x128")
    assert "no_embed_class=true" in error.value.hint
    assert positions(225, user="112x128", no_embed_class=True) == Trained(120, "", True)
    wide = Trained((112, 128), "user", False)
    assert positions(225, user="112x128", no_embed_class=False) == wide


def test_a_size_that_a_file_beside_states_decides() -> None:
    """config.json states what the model was trained with, not what is wanted."""
    assert positions(225, config="112x128") == Trained((112, 128), "config", False)


def test_two_squares_are_not_guessed() -> None:
    """9 positions: 3 x 3 patches, or 2 x 2 and five other tokens."""
    with pytest.raises(CheckpointError, match=r"2 x 2 patches or of 3 x 3 patches"):
        positions(9, prefix=5)


def test_there_is_no_size_without_positions() -> None:
    """Or with those of other tokens only."""
    assert positions(1, no_embed_class=False) is None
    fields = {"patch_size": 8, "class_token": True, "distilled": False, "reg_tokens": 0}
    assert (
        trained_positions(None, fields, sizes={}, wanted="", no_embed_class=None, source="x")
        is None
    )


@pytest.mark.parametrize("user", [None, 64, (40, 40)])
def test_an_unknown_size_is_an_error_that_lists_the_possible_ones(user: Any) -> None:
    """12 patches, and no size that makes so many."""
    with pytest.raises(CheckpointError, match="positions for 12 patches") as error:
        positions(14, prefix=2, user=user)
    assert "one of 24x32, 16x48, 8x96 px, or height" in error.value.hint


def test_a_file_without_class_token_is_told_from_one_that_lost_it() -> None:
    """16 patches are a model; 17 positions and no class token are a damaged file."""
    assert positions(16, prefix=0) == Trained(32, "", False)
    with pytest.raises(CheckpointError, match="a file that lost one is not complete"):
        positions(17, prefix=0)

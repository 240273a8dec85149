"""The image size of a position embedding."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vit_export.checkpoint.architecture import trained_size
from vit_export.errors import CheckpointError


def size_of(positions: int, num_prefix_tokens: int = 1, **sizes: Any) -> Any:
    """The size of a model with patches of 8 px."""
    return trained_size(
        torch.empty(1, positions, 8),
        {"patch_size": 8, "distilled": num_prefix_tokens == 2},
        sizes=sizes,
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
    assert size_of(1 + patches, **sizes) == expected


def test_there_is_no_size_without_positions() -> None:
    """Or with a class token only."""
    assert size_of(1) is None
    assert trained_size(None, {"patch_size": 8, "distilled": False}, sizes={}, source="x") is None


@pytest.mark.parametrize("user", [None, 64, (40, 40)])
def test_an_unknown_size_is_an_error_that_lists_the_possible_ones(user: Any) -> None:
    """12 patches, and no size that makes so many."""
    with pytest.raises(CheckpointError, match=r"one of 24x32, 16x48, 8x96 px, or height") as error:
        size_of(14, 2, user=user)
    assert "no_embed_class" not in str(error.value)


def test_positions_without_one_for_the_class_token_are_named_as_a_possible_cause() -> None:
    """225 positions: 14 x 16 patches and a class token, or 15 x 15 patches (FlexiViT)."""
    with pytest.raises(CheckpointError, match=r"positions are 15 x 15 patches .*no_embed_class"):
        size_of(225)

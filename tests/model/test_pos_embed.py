"""Position embeddings on other grids."""

from __future__ import annotations

import pytest
import torch
from timm.layers import resample_abs_pos_embed

from vit_export.errors import CheckpointError
from vit_export.model.pos_embed import resample_pos_embed, trained_size

GRIDS = [((4, 4), (6, 6)), ((6, 6), (4, 4)), ((4, 4), (3, 7)), ((3, 5), (5, 3)), ((3, 5), (4, 4))]


@pytest.mark.parametrize("prefix", [1, 2])
@pytest.mark.parametrize(("source", "target"), GRIDS)
def test_positions_are_resampled_as_timm_does_it(
    source: tuple[int, int], target: tuple[int, int], prefix: int
) -> None:
    """To the bit; the class and distillation tokens are kept."""
    pos_embed = torch.randn(1, prefix + source[0] * source[1], 24)
    found = resample_pos_embed(pos_embed, source=source, target=target, num_prefix_tokens=prefix)
    expected = resample_abs_pos_embed(
        pos_embed, list(target), old_size=list(source), num_prefix_tokens=prefix
    )
    assert torch.equal(found, expected)
    assert torch.equal(found[:, :prefix], pos_embed[:, :prefix])


def test_the_same_grid_is_left_alone() -> None:
    """No arithmetic at all."""
    pos_embed = torch.randn(1, 17, 8)
    assert resample_pos_embed(pos_embed, source=(4, 4), target=(4, 4), num_prefix_tokens=1) is (
        pos_embed
    )


@pytest.mark.parametrize(
    ("patches", "told", "wanted", "expected"),
    [
        (16, None, None, 32),  # square: seen
        (16, None, (16, 64), 32),  # what is wanted may differ from what there is
        (16, (16, 64), None, (16, 64)),  # told by config.json
        (16, (8, 8), None, 32),  # told, but it makes another number of patches
        (10, (16, 40), (40, 16), (16, 40)),  # told before wanted
        (10, None, (40, 16), (40, 16)),
        (10, None, "40x16", (40, 16)),
    ],
)
def test_the_size_that_positions_were_trained_for(
    patches: int, told: object, wanted: object, expected: object
) -> None:
    """A number of patches tells a square grid; of others only the product."""
    found = trained_size(
        torch.empty(1, 1 + patches, 8),
        {"patch_size": 8, "distilled": False},
        {"config.json": told, "the img_size asked for": wanted},
        source="x",
    )
    assert found == expected


@pytest.mark.parametrize("wanted", [None, 64, (40, 40)])
def test_a_grid_that_nothing_tells_is_asked_for(wanted: object) -> None:
    """With the sizes that are possible."""
    with pytest.raises(CheckpointError, match="one of 24x32, 16x48, 8x96 px, or height"):
        trained_size(
            torch.empty(1, 2 + 12, 8),
            {"patch_size": 8, "distilled": True},
            {"the img_size asked for": wanted},
            source="x",
        )

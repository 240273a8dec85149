"""Position embeddings on other grids."""

from __future__ import annotations

import pytest
import torch
from timm.layers import resample_abs_pos_embed

from vit_export.model.pos_embed import resample_pos_embed

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

"""Position embeddings on other grids."""

from __future__ import annotations

import pytest
import torch
import transformers
from timm.layers import resample_abs_pos_embed

from vit_export.model.pos_embed import resample_pos_embed
from vit_export.variants import ViTConfig

GRIDS = [((4, 4), (6, 6)), ((6, 6), (4, 4)), ((4, 4), (3, 7)), ((3, 5), (5, 3)), ((3, 5), (4, 4))]


def config(grid: tuple[int, int], **fields: object) -> ViTConfig:
    """A model with a grid of patches of 1 px."""
    return ViTConfig(variant="x", img_size=grid, patch_size=1, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(("prefix", "fields"), [
    (0, {"no_embed_class": True}),
    (1, {}),
    (2, {"distilled": True}),
    (5, {"reg_tokens": 4}),
])  # fmt: skip
@pytest.mark.parametrize(("source", "target"), GRIDS)
def test_positions_are_resampled_as_timm_does_it(
    source: tuple[int, int], target: tuple[int, int], prefix: int, fields: dict[str, object]
) -> None:
    """To the bit; positions of class, distillation and register tokens are kept."""
    pos_embed = torch.randn(1, prefix + source[0] * source[1], 24)
    found = resample_pos_embed(pos_embed, source=source, config=config(target, **fields))
    expected = resample_abs_pos_embed(
        pos_embed, list(target), old_size=list(source), num_prefix_tokens=prefix
    )
    assert torch.equal(found, expected)
    assert torch.equal(found[:, :prefix], pos_embed[:, :prefix])


def test_the_same_grid_is_left_alone() -> None:
    """No arithmetic at all."""
    pos_embed = torch.randn(1, 17, 8)
    assert resample_pos_embed(pos_embed, source=(4, 4), config=config((4, 4))) is pos_embed


@pytest.mark.parametrize("registers", [False, True])
def test_positions_are_resampled_as_hugging_faces_dinov2_does_it(registers: bool) -> None:
    """To the bit: without antialiasing, and with it where there are registers."""
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    made = getattr(transformers, f"{kind}Config")(image_size=48, patch_size=8, **sizes)
    embeddings = getattr(transformers, f"{kind}Model")(made).embeddings
    positions = embeddings.position_embeddings.detach()
    expected = embeddings.interpolate_pos_encoding(torch.empty(1, 1 + 4 * 5, 24), 32, 40)
    wanted = config((4, 5), interpolate_antialias=registers)
    assert torch.equal(resample_pos_embed(positions, source=(6, 6), config=wanted), expected)


def test_an_offset_scales_a_little_more_than_the_number_of_patches() -> None:
    """`scale_factor=((h + 0.1) / M, (w + 0.1) / M)` in DINO's and DINOv2's code."""
    patches = torch.randn(1, 36, 8)
    fields = {"interpolate_antialias": False, "no_embed_class": True}
    exact = resample_pos_embed(patches, source=(6, 6), config=config((9, 4), **fields))
    scaled = resample_pos_embed(
        patches, source=(6, 6), config=config((9, 4), interpolate_offset=0.1, **fields)
    )
    grid = patches.reshape(1, 6, 6, 8).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(
        grid, scale_factor=(9.1 / 6, 4.1 / 6), mode="bicubic"
    )
    assert torch.equal(scaled, expected.permute(0, 2, 3, 1).reshape(1, 36, 8))
    assert not torch.equal(scaled, exact)

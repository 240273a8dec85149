"""A Vision Transformer for images of any size: its graph resamples the position embedding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vit_export.errors import UsageError
from vit_export.model.pos_embed import resample_grid
from vit_export.model.vit import VisionTransformer


class AnySizeVisionTransformer(VisionTransformer):
    """Takes images of any multiple of the patch size, as timm does with `dynamic_img_size`.

    At the size of its config it computes what `VisionTransformer` computes.
    """

    @classmethod
    def of(cls, model: VisionTransformer) -> AnySizeVisionTransformer:
        """Make one that shares the weights of a model."""
        if model.pos_embed is None:
            raise UsageError("--dynamic-size: the model has no position embedding to resample")
        if model.config.rope != "none":
            raise UsageError("--dynamic-size: rotary positions are constants of one size")
        if model.config.interpolate_offset:
            raise UsageError(
                "--dynamic-size: this model's positions are resampled with an offset, as DINO's "
                "authors do, which a graph for any size cannot express",
                hint="--set interpolate_offset=0 resamples them without",
            )
        with torch.device("meta"):
            shared = cls(model.config)
        shared.load_state_dict(model.state_dict(), assign=True)
        return shared.eval()

    def positions(self, grid_hw: Sequence[int]) -> Tensor | None:
        """Return E_pos (1, N, D), resampled to a grid of patches."""
        if self.pos_embed is None:
            return None
        num_prefix = self.config.num_prefix_positions
        prefix, patches = self.pos_embed[:, :num_prefix], self.pos_embed[:, num_prefix:]
        source = self.config.grid_hw
        patches = resample_grid(patches, source=source, target=grid_hw, config=self.config)
        return torch.cat((prefix, patches), dim=1)

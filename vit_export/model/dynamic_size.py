"""A Vision Transformer that takes images of any size, by resampling its positions in the graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_export.errors import UsageError
from vit_export.model.vit import VisionTransformer


class AnySizeVisionTransformer(VisionTransformer):
    """Resamples E_pos to each image's grid: bicubic, antialiased, as timm's `dynamic_img_size`.

    Images may be any multiple of the patch; at the size of the config it computes what
    `VisionTransformer` does.
    """

    @classmethod
    def of(cls, model: VisionTransformer) -> AnySizeVisionTransformer:
        """Share the weights of a model.

        Raises:
            UsageError: It has no positions to resample.
        """
        if model.pos_embed is None:
            raise UsageError(
                "--dynamic-size: a model without position embedding has none to resample"
            )
        with torch.device("meta"):
            shared = cls(model.config)
        shared.load_state_dict(model.state_dict(), assign=True)
        return shared.eval()

    def positions(self, grid_hw: Sequence[int]) -> Tensor | None:
        """E_pos (1, N, D) resampled to a grid of patches."""
        if self.pos_embed is None:
            return None
        num_prefix = self.config.num_prefix_tokens
        prefix, patches = self.pos_embed[:, :num_prefix], self.pos_embed[:, num_prefix:]
        grid = patches.unflatten(1, self.config.grid_hw).permute(0, 3, 1, 2)  # (1, D, rows, cols)
        grid = F.interpolate(grid, size=tuple(grid_hw), mode="bicubic", antialias=True)
        return torch.cat((prefix, grid.flatten(2).transpose(1, 2)), dim=1)

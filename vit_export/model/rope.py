"""Rotary positions of DINOv3 (arXiv 2508.10104, section 3.2; RoPE: arXiv 2104.09864)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vit_export.variants import ViTConfig


class RotaryEmbedding(nn.Module):
    """Rotates queries or keys (B, h, N, d) by angles that encode row and column of their patch.

    Tokens before the patches are not rotated. The angles are constants: a quarter of a head's
    width encodes the row and a quarter the column, and dimension i is rotated with i + d/2.
    """

    cos: Tensor  # (N, d)
    sin: Tensor

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        angles = rotary_angles(config)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat((-second, first), dim=-1) * self.sin


def rotary_periods(count: int, *, theta: float, dtype: str) -> Tensor:
    """Return the d/4 periods of RoPE up to theta, rounded to a dtype, as float32.

    Meta's DINOv3 files hold them in bfloat16; timm and Hugging Face compute them in float32.
    """
    exponents = 2.0 * torch.arange(count, dtype=torch.float32, device="cpu") / (2 * count)
    return (theta**exponents).to(getattr(torch, dtype)).float()


def rotary_angles(config: ViTConfig) -> Tensor:
    """Return the angles (N, d) of every token in radians, float32; 0 for tokens before the patches.

    In float32, operation by operation as Meta's `RopePositionEmbedding` computes them.
    """
    centres = [torch.arange(0.5, n, dtype=torch.float32, device="cpu") / n for n in config.grid_hw]
    positions = torch.stack(torch.meshgrid(*centres, indexing="ij"), dim=-1).flatten(0, 1)
    positions = 2.0 * positions - 1.0  # rows and columns of patches, in [-1, 1]
    quarter = config.embed_dim // config.num_heads // 4
    periods = rotary_periods(quarter, theta=config.rope_theta, dtype=config.rope)
    angles = 2 * math.pi * positions[:, :, None] / periods  # (patches, 2, d/4)
    angles = angles.flatten(1).tile(2)  # (patches, d)
    return nn.functional.pad(angles, (0, 0, config.num_prefix_tokens, 0))

"""Random rotations and shifts of a batch of images, in torch.

Random numbers are drawn on the CPU, so that one seed gives the same images on every device.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def rotate_and_shift(images: Tensor, *, degrees: float, shift: float) -> Tensor:
    """Rotate and shift each image by a random amount of its own.

    Pixels from outside the image mirror it at its edge. Random numbers come from torch's global
    CPU generator.

    Args:
        images: Float (B, C, H, W).
        degrees: Largest rotation about the centre, either way.
        shift: Largest shift, either way, as a share of the height and of the width.

    Returns:
        Float (B, C, H, W), resampled bilinearly; `images` itself where both limits are 0.
    """
    if degrees == 0 and shift == 0:
        return images
    count, _, height, width = images.shape
    turn, right, down = (2 * torch.rand(3, count) - 1).unbind(0)  # each (B,), in [-1, 1)
    cos, sin = torch.cos(turn * math.radians(degrees)), torch.sin(turn * math.radians(degrees))
    # the grid's unit is half a side: a rotation must not shear an image that is not square
    aspect = height / width
    rows = (
        torch.stack((cos, -sin * aspect, 2 * shift * right), dim=1),
        torch.stack((sin / aspect, cos, 2 * shift * down), dim=1),
    )
    theta = torch.stack(rows, dim=1).to(images.device, images.dtype)  # (B, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)

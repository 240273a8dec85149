"""Random rotations and shifts of a batch of images, in torch."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def rotate_and_shift(images: Tensor, *, degrees: float, shift: float) -> Tensor:
    """Rotate and shift each image, (B, C, H, W), by a random amount of its own.

    Both limits count either way; `shift` is a share of the height and of the width. Pixels from
    outside the image mirror it at its edge.
    """
    if degrees == 0 and shift == 0:
        return images
    count, _, height, width = images.shape
    # each (B,), in [-1, 1); from the CPU's generator: one seed, the same images on every device
    turn, right, down = (2 * torch.rand(3, count) - 1).unbind(0)
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

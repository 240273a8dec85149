"""Random rotations and shifts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vit_export.training.augment import rotate_and_shift


def disc(height: int, width: int, *, radius: float) -> Tensor:
    """A blurred white disc in the centre, (1, 1, H, W)."""
    rows = torch.arange(height) - (height - 1) / 2
    columns = torch.arange(width) - (width - 1) / 2
    distance = (rows[:, None] ** 2 + columns[None, :] ** 2).sqrt()
    return torch.sigmoid(radius - distance)[None, None]


def centres(images: Tensor) -> Tensor:
    """Centre of mass of each image as (row, column) from the image's centre, (B, 2)."""
    height, width = images.shape[-2:]
    rows = torch.arange(height) - (height - 1) / 2
    columns = torch.arange(width) - (width - 1) / 2
    mass = images[:, 0] / images[:, 0].sum(dim=(1, 2), keepdim=True)
    return torch.stack(((mass.sum(2) * rows).sum(1), (mass.sum(1) * columns).sum(1)), dim=1)


def test_a_rotation_does_not_shear_an_image_that_is_not_square() -> None:
    """A disc stays the disc that it is, however it is turned."""
    image = disc(40, 80, radius=10)
    turned = rotate_and_shift(image.expand(32, -1, -1, -1), degrees=180, shift=0)
    middle = slice(20, 60)  # to its left and right the image is mirrored
    assert (turned - image)[..., middle].abs().max() < 0.1


def test_a_rotation_turns_by_up_to_the_degrees_either_way() -> None:
    """A spot on the right stays on its circle, within the angle, on both sides of the axis."""
    torch.manual_seed(0)
    spot = disc(81, 81, radius=3).roll(20, dims=-1)
    places = centres(rotate_and_shift(spot.expand(64, -1, -1, -1), degrees=30, shift=0))
    assert places.norm(dim=1).sub(20).abs().max() < 0.2
    angles = torch.rad2deg(torch.atan2(places[:, 0], places[:, 1]))
    assert angles.abs().max() <= 30.2
    assert angles.min() < -15
    assert angles.max() > 15


def test_a_shift_moves_by_up_to_its_share_of_each_side() -> None:
    """Rows by a share of the height, columns by a share of the width."""
    torch.manual_seed(0)
    image = disc(40, 80, radius=6).expand(64, -1, -1, -1)
    places = centres(rotate_and_shift(image, degrees=0, shift=0.1))
    for axis, limit in ((0, 4.0), (1, 8.0)):
        assert places[:, axis].abs().max() <= limit + 0.1
        assert places[:, axis].min() < -limit / 2
        assert places[:, axis].max() > limit / 2


def test_images_of_a_batch_move_differently_and_the_seed_decides_how() -> None:
    """The same seed moves the same images in the same way."""
    image = disc(16, 16, radius=4).expand(2, 3, -1, -1)
    results = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        results.append(rotate_and_shift(image, degrees=10, shift=0.2))
    first, again, other = results
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(first[0, 0], first[0, 1])  # the channels move together


def test_pixels_from_outside_mirror_the_image() -> None:
    """A constant stays constant: no black borders in a photograph."""
    moved = rotate_and_shift(torch.full((8, 1, 9, 9), 0.7), degrees=45, shift=0.3)
    assert moved.sub(0.7).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_rotation_and_shift_images_stay_as_they_are(dtype: torch.dtype) -> None:
    """Not even by a rounding."""
    images = torch.rand(2, 1, 5, 7, dtype=dtype)
    assert torch.equal(rotate_and_shift(images, degrees=0, shift=0), images)
    assert rotate_and_shift(images, degrees=1, shift=0).dtype == dtype

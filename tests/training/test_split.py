"""The split into training and validation images, class by class."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit_export.errors import DataError
from vit_export.training.split import stratified_split


@given(
    counts=st.lists(st.integers(1, 60), min_size=2, max_size=12),
    fraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 2**32),
)
def test_a_split_holds_out_the_same_share_of_every_class(
    counts: list[int], fraction: float, seed: int
) -> None:
    """Off by less than one image, nothing lost or doubled, every class still trained on."""
    targets = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    try:
        train, held_out = stratified_split(targets, fraction=fraction, seed=seed)
    except DataError:
        shares = fraction * np.array(counts)
        assert all(np.floor(np.minimum(shares, np.array(counts) - 1)) == 0)
        return
    assert sorted([*train, *held_out]) == list(range(len(targets)))
    held = np.bincount(targets[held_out], minlength=len(counts))
    assert all(abs(held - fraction * np.array(counts)) < 1)
    assert all(held < counts)
    assert len(held_out) <= round(fraction * len(targets))
    if min(counts) > 1 / (1 - fraction):
        assert len(held_out) == round(fraction * len(targets))


def test_the_split_depends_on_the_seed_alone() -> None:
    """Same seed, same images held out; another seed, others."""
    targets = np.arange(100) % 5
    first, again, other = (
        stratified_split(targets, fraction=0.2, seed=seed)[1].tolist() for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_split_of_too_few_images_is_refused() -> None:
    """Without validation images there is no best epoch."""
    with pytest.raises(DataError, match="hold out 20% of 2 images"):
        stratified_split(np.array([0, 1]), fraction=0.2, seed=0)

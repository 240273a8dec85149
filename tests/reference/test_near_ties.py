"""Golden images of a model that merges tokens: rounding must not change which ones merge."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vit_export.model.token_merging import merge_tokens
from vit_export.reference.near_ties import choice_margin, without_near_ties
from vit_export.reference.outputs import vit_outputs


def choices(scores, pairs):
    """The pairs that are merged."""
    best, partner = scores.max(dim=1)
    return {(int(i), int(partner[i])) for i in best.topk(pairs).indices}


def test_the_margin_is_that_of_the_closest_choice():
    """Between the last token that merges and the next, or between two partners of one of them."""
    scores = torch.tensor([[0.9, 0.1], [0.5, 0.2], [0.1, 0.44]])[None]
    assert choice_margin(scores, 1) == pytest.approx(0.4)
    assert choice_margin(scores, 2) == pytest.approx(0.06)
    scores[0, 0, 1] = 0.87
    assert choice_margin(scores, 1) == pytest.approx(0.03)
    assert choice_margin(scores[:, :, :1], 1) == pytest.approx(0.4)  # only one partner


@pytest.mark.parametrize("pairs", [1, 2, 4])
@pytest.mark.parametrize("partners", [1, 2, 4])
def test_smaller_errors_than_half_the_margin_change_no_choice(pairs, partners):
    generator = torch.Generator().manual_seed(partners)
    for _ in range(200):
        scores = torch.rand(5, partners, generator=generator)
        margin = choice_margin(scores[None], pairs)
        error = (2 * torch.rand(scores.shape, generator=generator) - 1) * margin / 2
        assert choices(scores + 0.999 * error, pairs) == choices(scores, pairs)


def test_a_larger_error_can_change_a_choice():
    scores = torch.tensor([[0.9, 0.1], [0.5, 0.2], [0.1, 0.44]])
    error = torch.tensor([[0, 0], [-0.031, 0], [0, 0.031]])
    assert choices(scores + error, 2) != choices(scores, 2)


@pytest.mark.parametrize("noise", [0, 1e-4])
def test_an_image_of_nearly_equal_patches_is_left_out(make_model, noise):
    """All their similarities are 1 or nearly so, and any of them could merge."""
    model = vit_outputs(merge_tokens(make_model(pos_embed="none"), 2))
    images = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    images[1] = 0.3 + noise * images[1]
    assert without_near_ties(model, images).tolist() == [True, False, True]

"""Emulated half precision, compared with torch's own."""

from __future__ import annotations

import copy

import pytest
import torch

from vit_export.reference.outputs import vit_outputs
from vit_export.reference.precision import Rounding, in_half, round_to


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_emulated_half_precision_is_as_far_from_float32_as_torchs_own(make_model, dtype):
    """Both round after every operation; the order of sums differs, so not to the bit."""
    model = make_model(depth=6, embed_dim=96)
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y32 = vit_outputs(model)(x)
        with in_half(vit_outputs(model), dtype):
            rounded = vit_outputs(model)(round_to(x, dtype))
        real = vit_outputs(copy.deepcopy(model).to(dtype))(x.to(dtype))
    for name, y, z, h in zip(vit_outputs(model).all_names, y32, rounded, real, strict=True):
        ours, theirs = float((z - y).abs().mean()), float((h.float() - y).abs().mean())
        assert 0.5 < ours / theirs < 2, name


def test_parameters_are_as_before_even_where_the_model_fails(make_model):
    """To the bit, inside and outside of the blocks."""
    model = make_model()
    before = [p.clone() for p in model.parameters()]
    outputs = vit_outputs(model)
    with torch.no_grad():
        with in_half(outputs, torch.float16):
            assert not torch.equal(model.head.weight, before[-2])
            outputs(torch.zeros(1, 3, 32, 32))
        with pytest.raises(RuntimeError), in_half(outputs, torch.float16):
            outputs(torch.zeros(1, 4, 32, 32))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_every_result_is_rounded_to_the_half_type():
    """Views and whole numbers are left alone."""
    x = torch.randn(50, generator=torch.Generator().manual_seed(0))
    with Rounding(torch.float16):
        y = (x * 3).softmax(0)
        whole = torch.arange(3) + 70000
    assert torch.equal(y, y.half().float())
    assert whole.tolist() == [70000, 70001, 70002]


def test_an_overflow_is_infinite():
    """Not clamped to the largest value."""
    with Rounding(torch.float16):
        assert torch.isinf(torch.tensor([300.0]) * 300).all()

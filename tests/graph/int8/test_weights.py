"""INT8 weights: no pair overflows 16 bits, and little precision is lost for it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vit_export.graph.int8.weights import channel_scales, to_int8

matrices = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9),
    elements=st.floats(-(2.0**20), 2.0**20, width=32, allow_subnormal=False),
)


def largest_pair(values: np.ndarray) -> int:
    """The largest |w[2j] + w[2j+1]| of INT8 weights (K, N)."""
    padded = np.concatenate([values, np.zeros((len(values) % 2, values.shape[1]), np.int8)])
    return int(np.abs(padded.reshape(-1, 2, values.shape[1]).astype(int).sum(axis=1)).max())


def lower_bound(weight: np.ndarray) -> np.ndarray:
    """The smallest scale within both limits before rounding, computed a second way."""
    padded = np.concatenate([weight, np.zeros((len(weight) % 2, weight.shape[1]), np.float32)])
    pairs = np.abs(padded.reshape(-1, 2, weight.shape[1]).astype(np.float64).sum(axis=1))
    return np.maximum(np.abs(weight).max(axis=0) / 127, pairs.max(axis=0) / 128)


@given(matrices)
def test_no_value_and_no_pair_is_too_large(weight):
    """Odd numbers of rows and channels of zeros included."""
    scales = channel_scales(weight)
    exact = np.rint(weight / scales)
    assert np.abs(exact).max() <= 127
    values = to_int8(weight, scales)
    assert np.array_equal(values, exact)
    assert largest_pair(values) <= 128


@given(matrices)
def test_a_scale_is_hardly_larger_than_needed(weight):
    """By a few units in the last place; no value is off by more than half a scale."""
    scales, bound = channel_scales(weight), lower_bound(weight)
    alive = bound >= np.finfo(np.float32).tiny
    assert (scales[alive] <= bound[alive] * (1 + 2e-5)).all()
    assert (scales[alive] >= bound[alive] * (1 - 1e-6)).all()
    off = np.abs(to_int8(weight, scales) * scales.astype(np.float64) - weight)
    assert (off <= 0.5001 * scales).all()


def test_pairs_of_opposite_sign_and_across_a_boundary_have_no_limit():
    """Only the sum of rows 2j and 2j + 1 is limited."""
    weight = np.array([[1, 0], [-1, 1], [0, 1], [0, 0]], np.float32)
    assert np.allclose(channel_scales(weight), 1 / 127)
    assert np.abs(to_int8(weight, channel_scales(weight))).max() == 127


def test_a_pair_that_float32_rounds_beyond_the_limit_gets_a_larger_scale():
    """63.5 + 64.5 is 64 + 64 = 128 when halves go to even, but 64 + 65 after a rounded division."""
    units = np.random.default_rng(0).uniform(0.5, 1, 4096)
    weight = np.stack([63.5 * units, 64.5 * units]).astype(np.float32)
    assert largest_pair(to_int8(weight, lower_bound(weight).astype(np.float32))) == 129
    assert largest_pair(to_int8(weight, channel_scales(weight))) == 128


def test_gaussian_weights_lose_less_than_with_seven_bits():
    """Relative L2 error of Gaussian weights: 8 bits < limited pairs < 7 bits."""
    weight = np.random.default_rng(0).standard_normal((768, 256)).astype(np.float32)

    def loss(scales: np.ndarray) -> float:
        off = np.rint(weight / scales) * scales - weight
        return float(np.linalg.norm(off) / np.linalg.norm(weight))

    reach = np.abs(weight).max(axis=0)
    eight, pairs, seven = (loss(s) for s in (reach / 127, channel_scales(weight), reach / 64))
    assert eight < pairs < 0.75 * seven

"""Inputs that do not fit are refused before a backend gets them."""

from __future__ import annotations

import re

import numpy as np
import pytest

from vit_export.artifact.manifest import TensorSpec
from vit_export.artifact.preprocess import Preprocess
from vit_export.errors import InputError
from vit_export.runtime.checks import (
    MAX_RANGE_FACTOR,
    check_array,
    check_feeds,
    check_names,
    check_sizes,
    largest_magnitude,
    with_batch,
)

SPEC = TensorSpec("pixel_values", "float32", ("batch_size", 3, 32, 48))
IDS = TensorSpec("ids", "int64", ("batch_size", 5))
GOOD = np.zeros((2, 3, 32, 48), np.float32)

ODD = [
    (GOOD.tolist(), "is a list; expected a numpy array (pixel_values: float32"),
    (None, "is a NoneType; expected a numpy array"),
    (GOOD.astype(np.float64), "has dtype float64, expected float32\nhint: convert it "
     "with .astype('float32')"),
    (GOOD.astype(np.uint8), "has dtype uint8, expected float32\nhint: classify() and "
     "embed() take images"),
    (GOOD.astype(">f4"), "is stored in the other byte order (>f4)\nhint: convert it"),
    (GOOD[0], "has shape (3, 32, 48), expected (batch_size, 3, 32, 48)\nhint: add the batch "
     "dimension: x[None]"),
    (GOOD.transpose(0, 2, 3, 1), "channels come first: x.transpose(0, 3, 1, 2)"),
    (GOOD[:, :, :16], "has shape (2, 3, 16, 48), expected (batch_size, 3, 32, 48)"),
    (np.full_like(GOOD, np.nan), "holds NaN or infinite values"),
    (np.where(np.arange(48) == 3, np.float32(np.inf), GOOD), "holds NaN or infinite values"),
]  # fmt: skip


@pytest.mark.parametrize(("array", "reason"), ODD, ids=[reason[:30] for _, reason in ODD])
def test_an_array_that_does_not_fit_is_refused(array, reason):
    """The message says what was given, what is expected, and what to do."""
    with pytest.raises(InputError, match=re.escape(f"input 'pixel_values' {reason}")
                       if not reason.startswith("channels") else re.escape(reason)):  # fmt: skip
        check_array(SPEC, array)


@pytest.mark.parametrize("array", [GOOD, GOOD[:1], np.asfortranarray(GOOD), GOOD[::-1]])
def test_an_array_may_have_any_memory_layout(array):
    """Backends copy arrays that are not contiguous."""
    check_array(SPEC, array)


def test_an_empty_batch_is_refused():
    """As an array and as a shape."""
    with pytest.raises(InputError, match=r"input 'pixel_values' is empty: shape \(0, 3, 32, 48\)"):
        check_feeds([SPEC], {"pixel_values": GOOD[:0]})
    with pytest.raises(InputError, match="is empty"):
        check_sizes([SPEC], {"pixel_values": [0, 3, 32, 48]})


def test_whole_numbers_are_not_checked_for_nan():
    """They cannot be NaN."""
    check_array(IDS, np.full((1, 5), np.iinfo(np.int64).max))


def test_an_unknown_name_offers_the_nearest():
    """And lists the model's inputs."""
    with pytest.raises(InputError, match=r"unknown input 'pixel_value'; did you mean 'pixel_val"):
        check_names([SPEC], {"pixel_value": GOOD})


def test_a_missing_input_is_named():
    """With its dtype and shape."""
    with pytest.raises(InputError, match=r"input 'ids' is missing \(the model takes: ids: int64"):
        check_feeds([SPEC, IDS], {"pixel_values": GOOD})


def test_a_dimension_that_two_inputs_share_must_agree():
    """One name, one size."""
    check_feeds([SPEC, IDS], {"pixel_values": GOOD, "ids": np.zeros((2, 5), np.int64)})
    with pytest.raises(InputError, match=r"input 'ids': batch_size is 3, elsewhere 2"):
        check_feeds([SPEC, IDS], {"pixel_values": GOOD, "ids": np.zeros((3, 5), np.int64)})


def test_dimensions_without_a_name_need_not_agree():
    """Each is independent."""
    specs = [TensorSpec("a", "float32", ("?",)), TensorSpec("b", "float32", ("?",))]
    check_feeds(specs, {"a": np.ones(2, np.float32), "b": np.ones(3, np.float32)})


IMAGENET = Preprocess(size=(32, 48), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
MNIST = Preprocess(size=(28, 28), mean=(0.1307,), std=(0.3081,), color="L")


@pytest.mark.parametrize("preprocess", [Preprocess(size=(32, 48)), IMAGENET, MNIST])
def test_pixels_from_0_to_255_are_refused_and_noise_is_not(preprocess):
    """The message says how to normalise."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, GOOD.shape).astype(np.float32)
    with pytest.raises(
        InputError, match=r"values from 0 to 255.*\nhint: normalise it: \(pixels / 255 - "
    ):
        check_array(SPEC, pixels, preprocess)
    check_array(SPEC, generator.standard_normal(GOOD.shape).astype(np.float32), preprocess)
    check_array(SPEC, (pixels / 255 - 0.45) / 0.22, preprocess)


def test_the_limit_is_a_multiple_of_the_range():
    """Negative and positive; without a preparation there is no limit."""
    preprocess = Preprocess(size=(32, 48))
    for sign in (1, -1):
        check_array(SPEC, np.full_like(GOOD, sign * MAX_RANGE_FACTOR), preprocess)
        beyond = np.full_like(GOOD, sign * (MAX_RANGE_FACTOR + 0.1))
        check_array(SPEC, beyond)
        with pytest.raises(InputError, match=f"values from {sign * 16.1} to {sign * 16.1},"):
            check_array(SPEC, beyond, preprocess)


def test_only_the_first_input_has_the_range_of_an_image():
    """The others of a model of several inputs are no images."""
    other = TensorSpec("scale", "float32", ("batch_size", 1))
    feeds = {"pixel_values": GOOD, "scale": np.full((2, 1), 1000, np.float32)}
    check_feeds([SPEC, other], feeds, preprocess=IMAGENET)
    with pytest.raises(InputError, match="input 'scale' holds values from 1e"):
        check_feeds([other, SPEC], feeds, preprocess=IMAGENET)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_largest_magnitude_is_that_of_float_comparisons(dtype):
    """Zeros of both signs, subnormal numbers, one sign only, any layout, more than one part."""
    generator = np.random.default_rng(0)
    large = generator.standard_normal((70, 3, 64, 64)).astype(dtype)
    tiny = np.finfo(dtype).smallest_subnormal
    small = [np.array(values, dtype) for values in (3, [0.0, -0.0], [-tiny, 0])]
    for array in (large, -np.abs(large), np.abs(large), large[::-1, :, ::2], large.T, *small):
        assert largest_magnitude(array) == np.abs(array).max()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("number", [np.nan, -np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_found_at_every_place(dtype, number):
    """In the first part of a large array, and in its last."""
    for place in (0, 1234, -1):
        array = np.ones((70, 3, 64, 64), dtype)
        array.reshape(-1)[place] = number
        np.testing.assert_equal(largest_magnitude(array), abs(number))


def test_with_batch_sets_the_dynamic_dimension():
    """A fixed shape stays."""
    assert with_batch(SPEC.shape, 7) == (7, 3, 32, 48)
    assert with_batch((4, 10), 7) == (4, 10)

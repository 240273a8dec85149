"""Ranges: batches lose nothing, and each method clips as it should."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vit_export.errors import ArtifactError
from vit_export.quantization.activation_ranges import BINS, Ranges, TensorRange

values = hnp.arrays(
    np.float32,
    st.tuples(st.integers(2, 12), st.just(3)),
    elements=st.floats(-(2.0**99), 2.0**99, width=32),
)


def counted(*parts: np.ndarray) -> TensorRange:
    """Statistics of these batches."""
    found = TensorRange(np.zeros(parts[0].shape[-1], np.float32))
    for part in parts:
        found.add(part)
    return found


def same(a: TensorRange, b: TensorRange) -> bool:
    """Whether two agree in everything."""
    return (
        np.array_equal(a.counts, b.counts)
        and np.array_equal(a.channels, b.channels)
        and (a.smallest, a.largest, a.exponent) == (b.smallest, b.largest, b.exponent)
    )


@given(values, st.data())
def test_batches_in_any_order_count_like_one_pass(array, data):
    """Bins join without a loss when the range doubles."""
    cut = data.draw(st.integers(1, len(array) - 1))
    whole = counted(array)
    assert same(counted(array[:cut], array[cut:]), whole)
    assert same(counted(array[cut:], array[:cut]), whole)


@given(values)
def test_every_value_lies_in_its_bin(array):
    """Counted a second way, in float64."""
    found = counted(array)
    magnitudes = np.abs(array.astype(np.float64))
    edges = np.arange(BINS + 1) * found.bin_width
    assert magnitudes.max() < edges[-1]
    assert np.array_equal(found.counts, np.histogram(magnitudes, edges)[0])
    assert found.absmax == magnitudes.max()
    assert np.array_equal(found.channels, np.abs(array).max(axis=0))
    assert (found.smallest, found.largest) == (array.min(), array.max())


@given(values, st.floats(1, 100))
def test_a_percentile_covers_its_share_and_hardly_more(array, share):
    """One bin less would cover too few."""
    found = counted(array)
    clip, magnitudes = found.percentile(share), np.abs(array).ravel()
    assert (magnitudes <= clip).sum() >= np.floor(share / 100 * magnitudes.size)
    below = (magnitudes < clip - found.bin_width).sum()
    assert below < max(1, np.ceil(share / 100 * magnitudes.size))


def test_percentiles_of_a_known_distribution():
    """Uniform on [-1, 1], with one far outlier."""
    array = np.linspace(-1, 1, 100_001, dtype=np.float32)[:, None]
    array = np.concatenate([array, [[3.0]]]).astype(np.float32)
    found = counted(array)
    assert found.threshold(percentile=50) == pytest.approx(0.5, abs=0.003)
    assert found.threshold(percentile=99) == pytest.approx(0.99, abs=0.003)
    assert found.threshold("max") == found.threshold(percentile=100) == 3


def test_entropy_clips_a_single_outlier_but_no_flat_distribution():
    """Resolution of the many is worth more than one far value (Migacz)."""
    rng = np.random.default_rng(0)
    bell = rng.standard_normal((200_000, 1)).astype(np.float32)
    far = counted(np.concatenate([bell, [[30.0]]]).astype(np.float32))
    assert 3 < far.entropy() < 8
    flat = counted(rng.uniform(-1, 1, (200_000, 1)).astype(np.float32))
    assert flat.entropy() > 0.95


def test_a_tensor_of_zeros_has_a_range_of_zero():
    """By every method."""
    found = counted(np.zeros((4, 2), np.float32))
    assert {found.threshold(method) for method in ("max", "percentile", "entropy")} == {0}


def test_a_file_that_was_read_is_written_again_to_the_byte(tmp_path):
    """Names, channels of different numbers, histograms."""
    rng = np.random.default_rng(0)
    tensors = {f"blocks.{c}/Gelu": counted(rng.standard_normal((9, c)).astype(np.float32))
               for c in (3, 5)}  # fmt: skip
    Ranges(tensors, images=9).write(tmp_path / "a.npz")
    found = Ranges.read(tmp_path / "a.npz")
    found.write(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert found.images == 9
    assert all(same(found.tensors[name], tensors[name]) for name in tensors)
    assert [len(tensor.channels) for tensor in found.tensors.values()] == [3, 5]


def test_another_file_is_no_file_of_ranges(tmp_path):
    """Missing, of something else, or cut off."""
    with pytest.raises(ArtifactError, match="no such file"):
        Ranges.read(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("text")
    np.savez(tmp_path / "other.npz", images=1)
    np.save(tmp_path / "one.npy", np.zeros(3))
    Ranges({"x": counted(np.ones((2, 1), np.float32))}, images=2).write(tmp_path / "whole.npz")
    arrays = dict(np.load(tmp_path / "whole.npz"))
    np.savez(tmp_path / "finer.npz", **arrays | {"counts": np.zeros((1, 2 * BINS), np.int64)})
    for name in ("text.npz", "other.npz", "one.npy", "finer.npz"):
        with pytest.raises(ArtifactError, match="not a file of activation ranges"):
            Ranges.read(tmp_path / name)

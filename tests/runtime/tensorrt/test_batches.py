"""Any batch in batches that an engine serves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vit_export.artifact.engine_sidecar import BatchRange
from vit_export.runtime.tensorrt.batches import Chunk, split

ONE = [BatchRange(1, 8, 32)]
TWO = [BatchRange(1, 1, 1), BatchRange(8, 16, 32)]


def test_a_batch_that_is_served_stays_whole() -> None:
    """Without a row of zeros."""
    assert split(5, ONE) == [Chunk(0, 5, 5, 0)]
    assert split(32, ONE) == [Chunk(0, 32, 32, 0)]


def test_a_larger_batch_is_cut_and_the_rest_is_served_as_it_is() -> None:
    """Largest pieces first."""
    assert split(70, ONE) == [Chunk(0, 32, 32, 0), Chunk(32, 32, 32, 0), Chunk(64, 6, 6, 0)]


def test_the_profile_tuned_for_the_nearest_size_serves() -> None:
    """Where several do."""
    profiles = [BatchRange(1, 1, 32), BatchRange(1, 16, 32)]
    assert split(2, profiles)[0].profile == 0
    assert split(12, profiles)[0].profile == 1


def test_a_batch_in_a_gap_is_filled_up() -> None:
    """To the next size that is served."""
    (chunk,) = split(3, TWO)
    assert chunk == Chunk(0, 3, 8, 1)
    assert chunk.padded
    assert split(33, TWO) == [Chunk(0, 32, 32, 1), Chunk(32, 1, 1, 0)]


@st.composite
def some_profiles(draw: st.DrawFn) -> list[BatchRange]:
    """One to three, of any sizes."""
    sizes = st.lists(st.integers(1, 40), min_size=3, max_size=3).map(sorted)
    return [BatchRange(*ends) for ends in draw(st.lists(sizes, min_size=1, max_size=3))]


@given(rows=st.integers(1, 200), profiles=some_profiles())
def test_every_row_is_run_once_in_a_size_that_its_profile_serves(
    rows: int, profiles: list[BatchRange]
) -> None:
    """Whatever the batch and the profiles."""
    chunks = split(rows, profiles)
    covered = [row for c in chunks for row in range(c.start, c.start + c.rows)]
    assert covered == list(range(rows))
    for chunk in chunks:
        ends = profiles[chunk.profile]
        assert ends.min <= chunk.batch <= ends.max
        assert chunk.rows <= chunk.batch
    assert not any(chunk.padded for chunk in chunks[:-1])

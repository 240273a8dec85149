"""Samples are cut into batches and filled up in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vit_export.artifact.manifest import Manifest, TensorSpec
from vit_export.runner import batch_rows, batch_size, run_filled


class Doubling:
    """A model of a given batch size that doubles its input, and remembers it."""

    path, provider = Path("x.onnx"), "cpu"
    manifest: Manifest | None = None

    def __init__(self, batch: int | str, profile: tuple[int, int, int] | None = None) -> None:
        self.profile = profile
        self.inputs = (TensorSpec("x", "float32", (batch, 2)),)
        self.fed = np.zeros(0)

    def run(self, feeds: Any) -> dict[str, np.ndarray]:
        self.fed = feeds["x"]
        return {"y": 2 * feeds["x"]}


@pytest.mark.parametrize(
    ("samples", "size", "rows"),
    [
        (3, 3, [[0, 1, 2]]),
        (5, 2, [[0, 1], [2, 3], [4, 0]]),
        (2, 5, [[0, 1, 0, 1, 0]]),
        (1, 1, [[0]]),
    ],
)
def test_the_last_batch_is_filled_up_with_the_first_samples(samples, size, rows):
    assert batch_rows(samples, size) == rows


@pytest.mark.parametrize(("batch", "given", "fed"), [(4, 3, 4), (3, 3, 3), ("n", 3, 3), (2, 2, 2)])
def test_a_fixed_batch_is_filled_up_and_the_outputs_are_cut(batch, given, fed):
    model, x = Doubling(batch), np.arange(2.0 * given).reshape(given, 2)
    np.testing.assert_array_equal(run_filled(model, {"x": x})["y"], 2 * x)
    assert len(model.fed) == fed
    assert set(map(tuple, model.fed)) == set(map(tuple, x))  # no row that was not given


def test_a_batch_below_the_smallest_of_the_profile_is_filled_up():
    model, x = Doubling("n", profile=(4, 8, 16)), np.arange(6.0).reshape(3, 2)
    for rows, fed in ((3, 4), (2, 4)):
        np.testing.assert_array_equal(run_filled(model, {"x": x[:rows]})["y"], 2 * x[:rows])
        assert len(model.fed) == fed


@pytest.mark.parametrize(
    ("batch", "profile", "size"),
    [
        ("n", None, 32),
        ("n", (1, 4, 8), 8),
        ("n", (48, 64, 64), 48),
        ("n", (1, 8, 64), 32),
        (3, None, 3),
    ],
)
def test_the_batch_size_is_one_that_the_runner_takes(batch, profile, size):
    assert batch_size(Doubling(batch, profile), 32) == size

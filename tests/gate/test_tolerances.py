"""Limits of each precision, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vit_export.artifact.golden import Blocks, Golden, block_indices
from vit_export.errors import ArtifactError
from vit_export.gate.distance import Measured, references
from vit_export.gate.tolerances import TOLERANCES, tolerances_of


@pytest.mark.parametrize(
    ("precision", "error_of_torch", "largest", "tolerance"),
    [
        ("fp32", 0.25, 8.0, 1.0),  # four times torch's error
        ("fp32", 0.0, 8.0, 8e-6),  # a millionth of the largest value
        ("fp32", 1e-6, 8.0, 8e-6),
        ("fp32", 100.0, 8.0, 400.0),  # no upper limit: another check refuses such a baseline
        ("fp16", 0.01, 8.0, 0.02),  # twice torch's error
        ("fp16", 0.25, 8.0, 0.08),  # never more than a hundredth of the largest value
        ("fp16", math.inf, 8.0, 0.08),
        ("fp16", 0.0, 8.0, 8e-6),
        ("bf16", 0.25, 8.0, 0.5),
        ("bf16", math.inf, 8.0, 0.64),  # never more than eight hundredths
        ("int8", None, 8.0, None),
        ("int8-static", None, 8.0, None),
    ],
)
def test_the_largest_distance_allowed(precision, error_of_torch, largest, tolerance):
    allowed = TOLERANCES[precision].tolerance(error_of_torch, largest)
    assert allowed == (None if tolerance is None else pytest.approx(tolerance, rel=1e-12))


def test_rows_may_depend_on_their_neighbours_in_dynamic_int8_only():
    assert TOLERANCES["int8"].row_tolerance(None, 8.0) is None
    assert TOLERANCES["int8-static"].row_tolerance(None, 8.0) == pytest.approx(0.08)
    assert TOLERANCES["fp32"].row_tolerance(0.25, 8.0) == 1.0
    without = [name for name, t in TOLERANCES.items() if t.row_tolerance(0.25, 8.0) is None]
    assert without == ["int8"]


def test_int8_is_limited_by_cosine_and_scale():
    for precision in ("int8", "int8-static"):
        assert TOLERANCES[precision].min_cosine == 0.99
        assert TOLERANCES[precision].max_scale_error == 0.02


def test_an_unknown_precision_is_an_error():
    with pytest.raises(ArtifactError, match=r"m\.onnx: its precision is 'fp8', expected one of"):
        tolerances_of("fp8", source="m.onnx")


def measured(precision: str, values: np.ndarray, output: np.ndarray) -> Measured:
    """Compare an output with the reference values in one batch."""
    golden = Golden(inputs={"x": values}, outputs={"logits": values}, e32={"logits": 0.25})
    result = Measured(references(golden, TOLERANCES[precision])["logits"])
    assert result.add(range(len(values)), output) == ""
    return result


@pytest.mark.parametrize(
    ("factor", "accepted", "error_ratio"),
    [(1.0, True, 0.0), (1.01, True, 0.5), (0.99, True, 0.5), (1.04, False, 2.0), (0.9, False, 5.0)],
)
def test_a_scale_error_counts_as_a_multiple_of_two_percent(factor, accepted, error_ratio):
    values = np.array([[3.0, -4.0], [1.0, 2.0]])
    result = measured("int8", values, factor * values)
    assert result.scale == pytest.approx(factor)
    assert result.accepted is accepted
    assert result.error_ratio == pytest.approx(error_ratio, abs=1e-9)


def test_the_scale_of_a_reference_of_zeros_is_right_only_for_zeros():
    zeros = np.zeros((2, 3))
    assert measured("int8", zeros, zeros).accepted
    assert not measured("int8", zeros, zeros + 0.1).accepted


def test_one_number_per_image_is_limited_by_its_distance():
    """Cosine and scale are undefined for a single value: a tenth of the spread is allowed."""
    values = np.array([[10.0], [20.0], [30.0]])  # 20 plus or minus 10: 1.0 is allowed
    assert measured("int8", values, values + 0.9).accepted
    assert not measured("int8", values, values + 1.1).accepted
    assert measured("int8", values, values * 1.03).accepted


def test_the_error_ratio_is_that_of_the_strictest_limit():
    values = np.array([[4.0, 0.0], [0.0, 4.0]])
    assert measured("fp32", values, values + 0.5).error_ratio == pytest.approx(0.5)
    assert measured("fp32", values, values + 2.0).error_ratio == pytest.approx(2.0)
    result = measured("int8-static", values, values)
    moved = values[::-1] + np.array([[0.0, 0.08], [0.0, 0.0]])
    assert result.add([1, 0], moved) == ""
    assert result.error_ratio == pytest.approx(2.0)  # a row moved by 0.08, and 0.04 is allowed


@pytest.mark.parametrize("size", [256, 100, 2000])
def test_a_block_of_another_size_cannot_be_compared(size):
    """Even where it has as many elements as were kept of the block."""
    values = np.ones((1, 2, 256))
    kept = Blocks(names=("b",), indices=block_indices(1000)[None], values=values, e32=np.ones(1))
    golden = Golden(inputs={"x": values[0]}, outputs={"y": values[0]}, e32={"y": 0.1}, blocks=kept)
    result = Measured(references(golden, TOLERANCES["fp32"])["b"])
    problem = result.add([0, 1], np.ones((2, size)))
    assert ("has shape" in problem) is (size < 1000)

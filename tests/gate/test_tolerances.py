"""What each precision has to keep to."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit_export.errors import ArtifactError
from vit_export.gate.tolerances import CRITERIA, criterion_of

numbers = st.floats(0, 1e6)


@given(numbers, numbers)
def test_fp32_allows_four_times_what_torch_rounds(e, largest):
    """And never less than a millionth of the largest value."""
    assert CRITERIA["fp32"].tolerance(e, largest) == max(4 * e, 1e-6 * largest)


@given(numbers, numbers)
def test_fp16_allows_twice_but_never_more_than_a_hundredth(e, largest):
    """However badly torch's own float16 does."""
    allowed = CRITERIA["fp16"].tolerance(e, largest)
    assert allowed == min(max(2 * e, 1e-6 * largest), 1e-2 * largest)
    assert CRITERIA["fp16"].tolerance(math.inf, largest) == 1e-2 * largest


def test_int8_goes_by_angle_and_only_dynamic_rows_may_depend_on_neighbours():
    """A static scale is the same for every row."""
    assert CRITERIA["int8"].tolerance(None, 1.0) is None
    assert CRITERIA["int8"].row_tolerance(None, 1.0) is None
    assert CRITERIA["int8-static"].tolerance(None, 1.0) is None
    assert CRITERIA["int8-static"].row_tolerance(None, 3.0) == pytest.approx(0.03)
    assert {c.min_cosine for name, c in CRITERIA.items() if "int8" in name} == {0.99}


def test_an_unknown_precision_is_an_error_not_fp32():
    """A file of a newer version is not measured by the wrong yardstick."""
    with pytest.raises(ArtifactError, match=r"m\.onnx: its precision is 'fp8'"):
        criterion_of("fp8", source="m.onnx")

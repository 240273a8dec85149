"""What each precision has to keep to."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit_export.errors import ArtifactError
from vit_export.gate.tolerances import TOLERANCES, tolerances_of

numbers = st.floats(0, 1e6)


@given(numbers, numbers)
def test_fp32_allows_four_times_what_torch_rounds(e, largest):
    """And never less than a millionth of the largest value."""
    assert TOLERANCES["fp32"].tolerance(e, largest) == max(4 * e, 1e-6 * largest)


@given(numbers, numbers)
def test_fp16_allows_twice_but_never_more_than_a_hundredth(e, largest):
    """However badly torch's own float16 does."""
    allowed = TOLERANCES["fp16"].tolerance(e, largest)
    assert allowed == min(max(2 * e, 1e-6 * largest), 1e-2 * largest)
    assert TOLERANCES["fp16"].tolerance(math.inf, largest) == 1e-2 * largest


def test_int8_goes_by_angle_and_only_dynamic_rows_may_depend_on_neighbours():
    """A static scale is the same for every row."""
    assert TOLERANCES["int8"].tolerance(None, 1.0) is None
    assert TOLERANCES["int8"].row_tolerance(None, 1.0) is None
    assert TOLERANCES["int8-static"].tolerance(None, 1.0) is None
    assert TOLERANCES["int8-static"].row_tolerance(None, 3.0) == pytest.approx(0.03)
    assert {c.min_cosine for name, c in TOLERANCES.items() if "int8" in name} == {0.99}


def test_an_unknown_precision_is_an_error_not_fp32():
    """A file of a newer version is not measured by the wrong yardstick."""
    with pytest.raises(ArtifactError, match=r"m\.onnx: its precision is 'fp8'"):
        tolerances_of("fp8", source="m.onnx")

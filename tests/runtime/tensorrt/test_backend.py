"""TensorRT and its versions; what it builds and runs is tested where that is done."""

from __future__ import annotations

import pytest

from vit_export.host.nvidia import version_tuple


@pytest.mark.parametrize(
    ("version", "numbers"),
    [
        ("10.13.3.9.post1", (10, 13, 3, 9)),
        ("2.13.0+cpu", (2, 13, 0)),
        ("2.14rc1", (2, 14)),
        ("11", (11,)),
        ("not available", ()),
        ("", ()),
    ],
)
def test_a_version_is_its_leading_numbers(version: str, numbers: tuple[int, ...]) -> None:
    """A candidate of 2.14 is newer than 2.9, and what is not there is older than everything."""
    assert version_tuple(version) == numbers

"""Every attribute of onnxruntime that the package uses exists; tests/openvino has 1.24.1."""

from __future__ import annotations

import onnxruntime
from ort_attributes import USED, missing_attributes, used_attributes


def test_the_list_of_used_attributes_is_complete():
    """The list is what an older onnxruntime is compared with."""
    assert used_attributes(onnxruntime) == USED


def test_the_newest_onnxruntime_has_every_attribute():
    """It is the one of the pinned versions."""
    assert missing_attributes(onnxruntime) == set()

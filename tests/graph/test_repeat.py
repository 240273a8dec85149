"""Blocks are copies of a traced one only where the exporter kept its weights."""

import numpy as np
import pytest

from vit_export.errors import ExportError
from vit_export.graph.repeat import _is_transposed


def test_a_weight_that_the_exporter_changed_is_an_error():
    """It is not taken for a transposed one."""
    weight = np.arange(4, dtype=np.float32).reshape(2, 2)
    assert not _is_transposed(weight, weight, "w")
    assert _is_transposed(weight.T, weight, "w")
    with pytest.raises(ExportError, match=r"changed the weight 'w' of blocks\.1"):
        _is_transposed(weight + 1, weight, "w")

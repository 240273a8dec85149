"""The best classes of an image, against a full sort."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vit_export.runtime.prediction import predict


@given(
    st.lists(st.sampled_from([-2.0, 0.0, 0.5, 0.5, 3.0]), min_size=1, max_size=12),
    st.integers(1, 15),
)
def test_the_best_classes_are_those_of_a_stable_sort(logits, top):
    """Equal scores keep the order of the classes, also where `top` cuts between them."""
    values = np.array(logits)
    found = predict(values, activation="none", labels=(), top=top)
    expected = np.argsort(-values, kind="stable")[:top]
    assert [one.index for one in found] == expected.tolist()
    assert [one.score for one in found] == values[expected].tolist()

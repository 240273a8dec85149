"""Files of text embeddings are read exactly, and what is wrong with one is named."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vit_export.artifact.text_embeddings import TextEmbeddings
from vit_export.errors import ArtifactError, UsageError

NAMES = np.array(["a cat", "a dog"])
VECTORS = np.array([[3.0, 4.0], [0.0, -2.0]], np.float32)


def read(folder: Path, **changes: Any) -> TextEmbeddings:
    """Write a file with some arrays changed or, where None, left out, and read it."""
    arrays = {"names": NAMES, "vectors": VECTORS, **changes}
    path = folder / "pets.npz"
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return TextEmbeddings.read(path)


def test_vectors_get_length_one_and_numbers_are_read(tmp_path):
    """Whatever their dtype; the logarithm of a scale is understood too."""
    found = read(tmp_path, scale=100.0, bias=np.array([-10.0]))
    assert (found.names, found.scale, found.bias) == (("a cat", "a dog"), 100.0, -10.0)
    np.testing.assert_array_equal(found.vectors, [[0.6, 0.8], [0, -1]])
    assert found.source == "pets.npz"
    found = read(tmp_path, logit_scale=math.log(50))
    assert found.scale == pytest.approx(50)
    assert found.bias is None
    assert found.scale_given
    bare = read(tmp_path, vectors=VECTORS.astype(np.float16))
    assert (bare.scale, bare.scale_given) == (1.0, False)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"names": None}, "has no array 'names'"),
        ({"vectors": None}, "has no array 'vectors'"),
        ({"name": NAMES}, "unknown array in .*'name'; did you mean 'names'"),
        ({"names": NAMES[:0], "vectors": VECTORS[:0]}, "it has no names"),
        ({"names": np.array(["a cat", "a cat "])}, "'a cat' comes more than once"),
        ({"names": np.array(["a cat", " "])}, "the name in row 1 is empty"),
        ({"names": np.arange(2)}, "names is int64"),
        ({"names": NAMES[:1]}, "1 names and 2 vectors"),
        ({"vectors": VECTORS[0]}, "vectors is float32"),
        ({"vectors": NAMES[:, None]}, "vectors is <U5"),
        ({"vectors": VECTORS * np.nan}, "the vector of 'a cat' holds NaN"),
        ({"vectors": VECTORS * [[1], [0]]}, "the vector of 'a dog' is zero"),
        ({"scale": 0.0}, "scale is 0, expected a positive number"),
        ({"scale": [1.0, 2.0]}, "expected one finite number"),
        ({"bias": np.inf}, "bias is float64"),
        ({"scale": 1.0, "logit_scale": 0.0}, "two forms of one number"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(changes, reason, tmp_path):
    with pytest.raises(UsageError, match=reason):
        read(tmp_path, **changes)


def test_pickled_names_are_not_read(tmp_path):
    """An array of objects would run code."""
    with pytest.raises(ArtifactError, match="not a file of text embeddings"):
        read(tmp_path, names=np.array(["a", None], dtype=object))

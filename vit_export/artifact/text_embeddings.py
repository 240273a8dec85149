"""Text embeddings of a user's own words: the head of a zero-shot classifier."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_export.artifact.golden import read_arrays
from vit_export.errors import UsageError, check_known

ARRAYS = ("names", "vectors", "scale", "logit_scale", "bias")
HINT = (
    "expected an .npz file of names (K,), vectors (K, D), and where the model has them scale, or "
    "logit_scale, its logarithm, and bias: "
    "np.savez(FILE, names=np.array(words), vectors=text_features, scale=100.0)"
)


@dataclass(frozen=True, kw_only=True)
class TextEmbeddings:
    """Names of classes, and what the text tower of an image-text model computes for each.

    An image's logit of a class is `scale * cosine(features, vector) + bias`, as in CLIP (arXiv
    2103.00020, section 2.3) and, with a bias, SigLIP (arXiv 2303.15343, section 3.2).
    """

    names: tuple[str, ...]
    vectors: NDArray[np.float64]  # (K, D), each of length 1
    scale: float
    bias: float | None  # None: without one, as in CLIP
    source: str  # base name of the file
    scale_given: bool

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "TextEmbeddings":
        """Read an .npz file; UsageError names what is wrong with it."""
        arrays = read_arrays(path, what="file of text embeddings", hint=HINT)

        def error(reason: str) -> UsageError:
            return UsageError(f"{path}: {reason}", hint=HINT)

        for name in arrays:
            check_known(f"array in {path}", name, ARRAYS)
        for name in ("names", "vectors"):
            if name not in arrays:
                raise error(f"has no array {name!r} (it has {', '.join(arrays) or 'none'})")
        names, vectors = arrays["names"], arrays["vectors"]
        if names.ndim != 1 or names.dtype.kind != "U":
            raise error(f"names is {names.dtype} {names.shape}, expected texts (K,)")
        if not names.size:
            raise error("it has no names")
        if vectors.ndim != 2 or vectors.dtype.kind not in "fiu":
            raise error(f"vectors is {vectors.dtype} {vectors.shape}, expected numbers (K, D)")
        if len(vectors) != len(names):
            raise error(f"{len(names)} names and {len(vectors)} vectors")
        words = tuple(str(name).strip() for name in names)
        if empty := [row for row, word in enumerate(words) if not word]:
            raise error(f"the name in row {empty[0]} is empty")
        if twice := sorted({word for word in words if words.count(word) > 1}):
            raise error(f"the name {twice[0]!r} comes more than once")
        exact = vectors.astype(np.float64)
        lengths = np.linalg.norm(exact, axis=1, keepdims=True)
        for row, word in enumerate(words):
            if not np.isfinite(exact[row]).all():
                raise error(f"the vector of {word!r} holds NaN or infinity")
            if lengths[row, 0] == 0:
                raise error(f"the vector of {word!r} is zero: it has no direction")
        numbers = {
            name: _number(arrays[name], name, error) for name in ARRAYS[2:] if name in arrays
        }
        if "scale" in numbers and "logit_scale" in numbers:
            raise error("scale and logit_scale are two forms of one number")
        scale = numbers.get("scale", math.exp(min(numbers.get("logit_scale", 0.0), 700.0)))
        if scale <= 0:
            raise error(f"scale is {scale:g}, expected a positive number")
        return cls(
            names=words,
            vectors=exact / lengths,
            scale=scale,
            bias=numbers.get("bias"),
            source=Path(path).name,
            scale_given=bool({"scale", "logit_scale"} & numbers.keys()),
        )


def _number(array: NDArray[Any], name: str, error: Any) -> float:
    """Return the one finite number in an array."""
    if array.size != 1 or array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise error(f"{name} is {array.dtype} {array.shape}, expected one finite number")
    return float(array.reshape(()))

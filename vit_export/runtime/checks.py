"""Checks of a runner's inputs, before a backend gets them; they raise InputError."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_export.artifact.manifest import Shape, TensorSpec
from vit_export.artifact.preprocess import Preprocess
from vit_export.errors import InputError, nearest, with_article

MAX_RANGE_FACTOR = 16  # of a normalised image's range; standard normal noise is below it
PART_BYTES = 1 << 20  # of an array that is read twice; it fits into a core's cache


def check_feeds(
    specs: Sequence[TensorSpec],
    feeds: Mapping[str, Any],
    *,
    patch_size: int = 1,
    preprocess: Preprocess | None = None,
) -> None:
    """Check names, dtypes, shapes, that all values are finite, and the range of normalised images.

    `preprocess` says how the first input, the images, was normalised; without it any finite value
    is accepted.
    """
    check_names(specs, feeds)
    for spec in specs:
        check_array(spec, feeds[spec.name], preprocess if spec is specs[0] else None)
    check_sizes(specs, {name: x.shape for name, x in feeds.items()}, patch_size=patch_size)


def check_sizes(
    specs: Sequence[TensorSpec], shapes: Mapping[str, Sequence[int]], *, patch_size: int = 1
) -> None:
    """Check the sizes of dynamic dimensions: above 0, equal in all inputs, whole patches (px)."""
    sizes: dict[str, int] = {}
    for spec in specs:
        if 0 in shapes[spec.name]:
            raise InputError(f"input {spec.name!r} is empty: shape {tuple(shapes[spec.name])}")
        for size, dim in zip(shapes[spec.name], spec.shape, strict=True):
            if isinstance(dim, str) and dim != "?" and sizes.setdefault(dim, size) != size:
                raise InputError(f"input {spec.name!r}: {dim} is {size}, elsewhere {sizes[dim]}")
            if dim in ("height", "width") and size % patch_size:
                raise InputError(
                    f"input {spec.name!r}: {dim} {size} px is no multiple of the patch size "
                    f"({patch_size} px)"
                )


def check_names(
    specs: Sequence[TensorSpec], names: Collection[str], *, kind: str = "input"
) -> None:
    """Check names of outputs, or that exactly the inputs of the graph are named."""
    known = [spec.name for spec in specs]
    for name in names:
        if name not in known:
            raise InputError(
                f"unknown {kind} {name!r}{nearest(name, known)} (the model's {kind}s: "
                f"{'; '.join(map(str, specs))})"
            )
    for spec in specs:
        if kind == "input" and spec.name not in names:
            raise InputError(f"input {spec.name!r} is missing (the model takes: {spec})")


def check_array(spec: TensorSpec, array: Any, preprocess: Preprocess | None = None) -> None:
    """Check an array's dtype and shape, that it is finite, and the range of a normalised image."""
    problem, hint = "", f"convert it with .astype('{spec.dtype}')"
    if not isinstance(array, np.ndarray):
        problem, hint = (
            f"is {with_article(type(array).__name__)}; expected a numpy array ({spec})",
            "",
        )
    elif array.dtype.name != spec.dtype:
        problem = f"has dtype {array.dtype.name}, expected {spec.dtype}"
        if array.dtype == np.uint8:
            hint = "classify() and embed() take images, and vit_export.images.prepare prepares them"
    elif not array.dtype.isnative:  # ONNX Runtime would read its bytes in the wrong order
        problem = f"is stored in the other byte order ({array.dtype.str})"
    elif not spec.fits(array.shape):
        problem = f"has shape {array.shape}, expected ({', '.join(map(str, spec.shape))})"
        hint = _shape_hint(spec, array.shape)
    elif array.dtype.kind == "f" and array.size:
        largest = largest_magnitude(array)
        if not math.isfinite(largest):
            problem, hint = "holds NaN or infinite values", ""
        elif preprocess is not None and largest > MAX_RANGE_FACTOR * _largest_pixel(preprocess):
            problem, hint = _range_problem(array, preprocess)
    if problem:
        raise InputError(f"input {spec.name!r} {problem}", hint=hint)


def largest_magnitude(array: NDArray[np.floating]) -> float:
    """Return the largest absolute value of a float array; NaN where one of its values is NaN.

    IEEE 754 numbers without their sign have the order of their bits, with infinity and then NaN on
    top. So two integer maxima find it, for float16 in a hundredth of the time of two float ones.
    """
    array, size = np.atleast_1d(array), array.itemsize
    rows, magnitude = max(1, len(array) * PART_BYTES // array.nbytes), (1 << (8 * size - 1)) - 1
    largest = 0
    for start in range(0, len(array), rows):
        part = array[start : start + rows]
        for kind in "iu":  # the largest positive, and the largest negative number
            largest = max(largest, int(part.view(f"{kind}{size}").max()) & magnitude)
    return float(np.array(largest, f"u{size}").view(array.dtype))


def _largest_pixel(preprocess: Preprocess) -> float:
    """Return the largest absolute value of a normalised pixel."""
    ends = ((end - mean) / std for mean, std in zip(preprocess.mean, preprocess.std, strict=True)
            for end in (0, 1))  # fmt: skip
    return max(map(abs, ends))


def _range_problem(array: NDArray[np.floating], preprocess: Preprocess) -> tuple[str, str]:
    """Describe values that cannot be those of a normalised image, e.g. 0 to 255; and the hint."""
    mean, std = np.array(preprocess.mean), np.array(preprocess.std)
    return (
        f"holds values from {float(array.min()):.3g} to {float(array.max()):.3g}, but a normalised "
        f"image of this model has values from {(-mean / std).min():.3g} to "
        f"{((1 - mean) / std).max():.3g}",
        f"normalise it: (pixels / 255 - {preprocess.mean}) / {preprocess.std}",
    )


def with_batch(shape: Shape, batch: int) -> tuple[int, ...]:
    """Return a shape whose dynamic dimension, the batch, has a size."""
    return tuple(batch if isinstance(size, str) else size for size in shape)


def _shape_hint(spec: TensorSpec, shape: Sequence[int]) -> str:
    if len(shape) == len(spec.shape) - 1:
        return "add the batch dimension: x[None]"
    if len(shape) == 4 and spec.fits((shape[0], shape[3], shape[1], shape[2])):
        return "channels come first: x.transpose(0, 3, 1, 2)"
    return ""

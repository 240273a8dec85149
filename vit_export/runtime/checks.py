"""Checks of a runner's inputs, before a backend gets them; they raise InputError."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from vit_export.artifact.manifest import Shape, TensorSpec
from vit_export.artifact.preprocess import Preprocess
from vit_export.errors import InputError, nearest, with_article

MAX_RANGE_FACTOR = 16  # of a normalised image's range; standard normal noise is below it


def check_feeds(
    specs: Sequence[TensorSpec], feeds: Mapping[str, Any], *, patch_size: int = 1
) -> None:
    """Check names, dtypes, shapes and that all values are finite."""
    check_names(specs, feeds)
    for spec in specs:
        check_array(spec, feeds[spec.name])
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


def check_array(spec: TensorSpec, array: Any) -> None:
    """Check an array's dtype, shape and that its values are finite."""
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
    elif array.dtype.kind == "f" and not np.isfinite(array).all():
        problem, hint = "holds NaN or infinite values", ""
    if problem:
        raise InputError(f"input {spec.name!r} {problem}", hint=hint)


def with_batch(shape: Shape, batch: int) -> tuple[int, ...]:
    """Return a shape whose dynamic dimension, the batch, has a size."""
    return tuple(batch if isinstance(size, str) else size for size in shape)


def _shape_hint(spec: TensorSpec, shape: Sequence[int]) -> str:
    if len(shape) == len(spec.shape) - 1:
        return "add the batch dimension: x[None]"
    if len(shape) == 4 and spec.fits((shape[0], shape[3], shape[1], shape[2])):
        return "channels come first: x.transpose(0, 3, 1, 2)"
    return ""


def check_range(spec: TensorSpec, array: Any, preprocess: Preprocess) -> None:
    """Check that pixel values can be those of a normalised image, unlike e.g. 0 to 255."""
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or not array.size:
        return  # a device tensor is not copied for this check; `check_array` refuses the others
    mean, std = np.array(preprocess.mean), np.array(preprocess.std)
    normalised = np.concatenate([(0 - mean) / std, (1 - mean) / std])
    low, high = float(array.min()), float(array.max())
    if max(abs(low), abs(high)) > MAX_RANGE_FACTOR * np.abs(normalised).max():
        raise InputError(
            f"input {spec.name!r} holds values from {low:.3g} to {high:.3g}, but a normalised "
            f"image of this model has values from {normalised.min():.3g} to "
            f"{normalised.max():.3g}",
            hint=f"normalise it: (pixels / 255 - {preprocess.mean}) / {preprocess.std}",
        )

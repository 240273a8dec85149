"""Checks of what a caller hands to a runner, before a backend sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vit_export.artifact.manifest import Preprocess, Shape, TensorSpec
from vit_export.errors import InputError, nearest

FAR = 16  # times the range of a normalised image; standard normal noise stays below


def check_feeds(
    specs: Sequence[TensorSpec], feeds: Mapping[str, Any], *, patch_size: int = 1
) -> None:
    """Refuse inputs of a wrong name, dtype or shape, or that are not finite.

    Args:
        specs: What the graph takes.
        feeds: Arrays by name.
        patch_size: What dynamic heights and widths must be multiples of.

    Raises:
        InputError: Naming the input, what was given, and what is expected.
    """
    check_names(specs, feeds)
    for spec in specs:
        check_array(spec, feeds[spec.name])
    shapes = {name: array.shape for name, array in feeds.items()}
    check_sizes(specs, shapes, patch_size=patch_size)


def check_sizes(
    specs: Sequence[TensorSpec], shapes: Mapping[str, Sequence[int]], *, patch_size: int = 1
) -> None:
    """Refuse sizes of dynamic dimensions that do not go together, or that a model cannot take.

    Args:
        specs: What the graph takes.
        shapes: By name; each `fits` its spec.
        patch_size: What dynamic heights and widths must be multiples of.

    Raises:
        InputError: Naming the input, its size, and what is expected.
    """
    sizes: dict[str, int] = {}
    for spec in specs:
        if 0 in shapes[spec.name]:
            raise InputError(f"input {spec.name!r} is empty: shape {tuple(shapes[spec.name])}")
        for size, dim in zip(shapes[spec.name], spec.shape, strict=True):
            if isinstance(dim, str) and dim != "?" and sizes.setdefault(dim, size) != size:
                raise InputError(f"input {spec.name!r}: {dim} is {size}, elsewhere {sizes[dim]}")
            if dim in ("height", "width") and size % patch_size:
                raise InputError(
                    f"input {spec.name!r}: {dim} {size} px is no multiple of the patch "
                    f"({patch_size} px); the rest would be cut off unseen"
                )


def check_names(specs: Sequence[TensorSpec], feeds: Mapping[str, Any]) -> None:
    """Refuse inputs that the graph does not take, and inputs that are missing.

    Raises:
        InputError: Naming the input, and what is expected.
    """
    expected = [spec.name for spec in specs]
    for name in feeds:
        if name not in expected:
            raise InputError(
                f"unknown input {name!r}{nearest(name, expected)} (the model takes: "
                f"{'; '.join(map(str, specs))})"
            )
    for spec in specs:
        if spec.name not in feeds:
            raise InputError(f"input {spec.name!r} is missing (the model takes: {spec})")


def check_array(spec: TensorSpec, array: Any) -> None:
    """Refuse an array of a wrong dtype or shape, or one that is not finite.

    Raises:
        InputError: Naming the input, what was given, and what is expected.
    """
    if not isinstance(array, np.ndarray):
        raise InputError(
            f"input {spec.name!r} is a {type(array).__name__}; expected a numpy array ({spec})"
        )
    if array.dtype.name != spec.dtype:
        hint = (
            "prepare images with vit_export.images.prepare, or call classify()"
            if array.dtype == np.uint8
            else f"convert it with .astype('{spec.dtype}')"
        )
        raise InputError(
            f"input {spec.name!r} has dtype {array.dtype.name}, expected {spec.dtype}; {hint}"
        )
    if not array.dtype.isnative:  # ONNX Runtime would read its bytes in the wrong order
        raise InputError(
            f"input {spec.name!r} is stored in the other byte order ({array.dtype.str}); "
            f"convert it with .astype('{spec.dtype}')"
        )
    if not spec.fits(array.shape):
        raise InputError(
            f"input {spec.name!r} has shape {array.shape}, expected "
            f"({', '.join(map(str, spec.shape))}){_shape_hint(spec, array.shape)}"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"input {spec.name!r} holds NaN or infinite values")


def with_batch(shape: Shape, batch: int) -> tuple[int, ...]:
    """A shape whose one dynamic dimension, the batch, has that size."""
    return tuple(batch if isinstance(size, str) else size for size in shape)


def _shape_hint(spec: TensorSpec, shape: Sequence[int]) -> str:
    if len(shape) == len(spec.shape) - 1:
        return "; add the batch dimension: x[None]"
    if len(shape) == 4 and spec.fits((shape[0], shape[3], shape[1], shape[2])):
        return "; channels come first: x.transpose(0, 3, 1, 2)"
    return ""


def check_range(spec: TensorSpec, array: Any, preprocess: Preprocess) -> None:
    """Refuse pixel values that no normalisation of this model gives, e.g. 0 to 255.

    Raises:
        InputError: Naming the range found and the range of a normalised image.
    """
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or not array.size:
        return  # a device tensor stays where it is; anything else is `check_array`'s to refuse
    ends = [(end - m) / s for m, s in zip(preprocess.mean, preprocess.std, strict=True)
            for end in (0.0, 1.0)]  # fmt: skip
    low, high = min(ends), max(ends)
    found_low, found_high = float(array.min()), float(array.max())
    if max(abs(found_low), abs(found_high)) > FAR * max(abs(low), abs(high)):
        raise InputError(
            f"input {spec.name!r} holds values from {found_low:.3g} to {found_high:.3g}, but a "
            f"normalised image of this model lies in {low:.3g} to {high:.3g}; normalise it: "
            f"(pixels / 255 - {preprocess.mean}) / {preprocess.std}"
        )

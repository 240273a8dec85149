"""Pillow's resampling as matrix products, for runtimes whose Resize has no antialiasing.

Pillow computes in whole numbers (`src/libImaging/Resample.c`): a weight is a multiple of 2 ** -22,
and the sum of each pass is rounded to 8 bits. So do these nodes, and give its pixels to the bit.
The weights are computed in the graph from the size of the image, in float64. The products are those
of float32 numbers small enough to be exact, and only of rows and columns that the crop keeps.
Shape letters: B batch, C channels, H W pixels of the image, R S pixels of the model's input.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from vit_export.graph.section import Section

A = -0.5  # Pillow's coefficient of bicubic; that of ONNX's Resize is -0.75 by default
PRECISION = 2.0**22  # of a weight
HALF_BITS = 2.0**11  # a weight is `high * HALF_BITS + low`, and float32 adds up both exactly


def resample(
    add: Section,
    pixels: ir.Value,
    *,
    image_hw: ir.Value,
    resized_hw: ir.Value,
    start: ir.Value,
    size: tuple[int, int],
    interpolation: str,
    rows_first: ir.Value,
) -> ir.Value:
    """Resize an image, uint8 (B, H, W, C), and cut out `size`: float32 (B, C, R, S).

    `rows_first` says whether rows or columns are interpolated first. Both orders are in the graph,
    without control flow, which many tools do not take: the one that does not count gets one row or
    column.
    """
    planes = add("Cast", add("Transpose", pixels, perm=[0, 3, 1, 2]), to=ir.DataType.FLOAT)
    (height, *_), (width, *_) = by_side = [
        [add("Slice", x, [axis], [axis + 1], [0]) for x in (image_hw, resized_hw, start)]
        for axis in (0, 1)
    ]
    rows, columns = (
        _weights(add, sides, size[axis], interpolation) for axis, sides in enumerate(by_side)
    )
    few_rows = add("Where", rows_first, [1], height)
    few_columns = add("Where", rows_first, width, [1])
    across = columns.across(add("Slice", planes, [0], few_rows, [2]))
    columns_then_rows = rows.first(few_rows).down(across)
    down = rows.down(add("Slice", planes, [0], few_columns, [3]))
    rows_then_columns = columns.first(few_columns).across(down)
    return add("Where", rows_first, rows_then_columns, columns_then_rows)


@dataclass(frozen=True)
class _Weights:
    """The weights of one side, float32 (wanted, given) each."""

    add: Section
    high: ir.Value
    low: ir.Value

    def first(self, count: ir.Value) -> "_Weights":
        """Return those of the first given pixels."""
        high, low = (self.add("Slice", x, [0], count, [1]) for x in (self.high, self.low))
        return _Weights(self.add, high, low)

    def down(self, planes: ir.Value) -> ir.Value:
        """Interpolate the rows of planes."""
        return self._levels(*(self.add("MatMul", x, planes) for x in (self.high, self.low)))

    def across(self, planes: ir.Value) -> ir.Value:
        """Interpolate the columns of planes."""
        turned = (self.add("Transpose", x, perm=[1, 0]) for x in (self.high, self.low))
        return self._levels(*(self.add("MatMul", planes, x) for x in turned))

    def _levels(self, high: ir.Value, low: ir.Value) -> ir.Value:
        """Round a sum of weighted pixels to levels, half of one upwards."""
        add, half = self.add, np.float32(HALF_BITS)
        carried = add("Add", high, add("Floor", add("Div", low, half)))
        rounded = add("Floor", add("Div", add("Add", carried, np.float32(HALF_BITS / 2)), half))
        return add("Clip", rounded, np.float32(0), np.float32(255))


def _weights(add: Section, sides: Sequence[ir.Value], size: int, interpolation: str) -> _Weights:
    """Compute the weight of each given pixel in each wanted one.

    `sides` are the sizes of the image given and resized, and the first pixel of the crop. The
    distance of two centres is a whole number of 1 / (2 * resized) pixels, so that it is exact.
    """
    given, resized, start = sides
    index = add("Range", 0, add("Squeeze", given, [0]), 1)
    places = add("Add", add("Unsqueeze", add("Range", 0, size, 1), [1]), start)
    places = add("Min", places, add("Sub", resized, 1))  # a border may follow the last pixel
    wanted, centers = (add("Add", add("Mul", x, 2), 1) for x in (places, index))
    apart = add("Abs", add("Sub", add("Mul", wanted, given), add("Mul", centers, resized)))
    # antialiasing: where an image shrinks, the filter is wider by the same factor
    unit = add("Mul", add("Max", given, resized), 2)
    distance = add("Div", *(add("Cast", x, to=ir.DataType.DOUBLE) for x in (apart, unit)))
    weights = FILTERS[interpolation](add, distance)
    shares = add("Div", weights, add("ReduceSum", weights, [1], keepdims=1))
    whole = add("Floor", add("Add", add("Mul", shares, PRECISION), 0.5))
    high = add("Floor", add("Add", add("Div", whole, HALF_BITS), 0.5))
    low = add("Sub", whole, add("Mul", high, HALF_BITS))
    return _Weights(add, *(add("Cast", x, to=ir.DataType.FLOAT) for x in (high, low)))


def _triangle(add: Section, x: ir.Value) -> ir.Value:
    return add("Max", add("Sub", 1.0, x), 0.0)


def _cubic(add: Section, x: ir.Value) -> ir.Value:
    def polynomial(first: float, *others: float) -> ir.Value:
        total: Any = first
        for coefficient in others:
            total = add("Add", add("Mul", total, x), coefficient)
        return total  # type: ignore[no-any-return]

    near = polynomial(A + 2, -(A + 3), 0.0, 1.0)
    far = polynomial(A, -5 * A, 8 * A, -4 * A)
    outside = add("Where", add("Less", x, 2.0), far, 0.0)
    return add("Where", add("Less", x, 1.0), near, outside)


def _lanczos(add: Section, x: ir.Value) -> ir.Value:
    def sinc(x: ir.Value) -> ir.Value:
        angle = add("Mul", x, math.pi)
        ratio = add("Div", add("Sin", angle), angle)
        return add("Where", add("Equal", x, 0.0), 1.0, ratio)

    product = add("Mul", sinc(x), sinc(add("Div", x, 3.0)))
    return add("Where", add("Less", x, 3.0), product, 0.0)


# Pillow's filters: weight by the distance in pixels of the coarser image
FILTERS = {"bilinear": _triangle, "bicubic": _cubic, "lanczos": _lanczos}

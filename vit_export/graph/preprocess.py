"""Image preparation as nodes of a graph: uint8 images of any size to `pixel_values`.

The nodes repeat what `vit_export.images` does with Pillow: its sizes, its crop, its order of
roundings, so that no pixel differs by more than one of 255 levels. Sizes are computed in the graph.
Shape letters: B batch, C channels, H W pixels of the image, R S pixels of the model's input.
"""

from pathlib import Path

import numpy as np
import onnx_ir as ir

from vit_export.artifact.preprocess import Preprocess
from vit_export.artifact.vocabulary import IMAGE, PIXEL_VALUES, RESIZE_FORMS
from vit_export.errors import UsageError, check_known
from vit_export.graph.resample import A, resample
from vit_export.graph.section import Section
from vit_export.images.decode import LUMA
from vit_export.images.prepare import border_color, size_before_crop

OPSET, IR_VERSION = 20, 10  # of a preparation alone: ONNX Runtime 1.18 and later
MODES = {"bilinear": "linear", "bicubic": "cubic"}  # of a Resize node, by Pillow's name


def check_expressible(preprocess: Preprocess, resize: str) -> None:
    """Raise UsageError for an image preparation that a graph cannot have."""
    check_known("form of resize", resize, RESIZE_FORMS)
    name = preprocess.interpolation
    if resize == "op" and name not in (*MODES, "nearest"):
        raise UsageError(
            f"--interpolation {name}: ONNX's Resize node has no {name} interpolation",
            hint="--resize matmul expresses it by matrix products",
        )
    if any(
        rows < side
        for rows, side in zip(size_before_crop(preprocess), preprocess.size, strict=True)
    ):
        raise UsageError(
            f"--crop-pct {preprocess.crop_pct:g}: expected at most 1 with --preprocess embedded, "
            "so that golden images fill the model's input"
        )


def preparation(image: ir.Value, preprocess: Preprocess, resize: str) -> tuple[Section, ir.Value]:
    """Return the nodes that prepare an image, uint8 (B, H, W, C), and float32 (B, C, R, S).

    `resize` is `"op"` for Resize nodes, or `"matmul"` for matrix products.
    """
    check_expressible(preprocess, resize)
    add = Section("preprocess")
    pixels = _luma(add, image) if preprocess.color == "L" else image
    image_hw = add("Shape", pixels, start=1, end=3)
    resized_hw = _resized_hw(add, image_hw, preprocess)
    start = _crop_start(add, resized_hw, preprocess)
    first = add("Max", start, [0]) if preprocess.crop_mode == "border" else start
    if preprocess.interpolation == "nearest":
        cut = _nearest(add, pixels, image_hw, resized_hw, first, preprocess.size)
    elif resize == "op":
        cut = _resized(add, pixels, image_hw, resized_hw, first, preprocess)
    else:
        planes = resample(
            add,
            pixels,
            image_hw=image_hw,
            resized_hw=resized_hw,
            start=first,
            size=preprocess.size,
            interpolation=preprocess.interpolation,
            rows_first=_rows_first(add, image_hw, resized_hw),
        )
    if preprocess.interpolation == "nearest" or resize == "op":
        planes = add("Cast", add("Transpose", cut, perm=[0, 3, 1, 2]), to=ir.DataType.FLOAT)
    if preprocess.crop_mode == "border":
        planes = _bordered(add, planes, resized_hw, start, preprocess)
    return add, _normalized(add, planes, preprocess)


def preparation_model(preprocess: Preprocess, resize: str, *, opset: int = OPSET) -> ir.Model:
    """Return a model of the preparation alone: `image` to `pixel_values`."""
    channels = 3 if preprocess.color else len(preprocess.mean)
    shape: list[int | str] = ["batch_size", "image_height", "image_width", channels]
    image = ir.Value(name=IMAGE, type=ir.TensorType(ir.DataType.UINT8), shape=ir.Shape(shape))
    add, prepared = preparation(image, preprocess, resize)
    prepared.name, prepared.type = PIXEL_VALUES, ir.TensorType(ir.DataType.FLOAT)
    prepared.shape = ir.Shape(["batch_size", len(preprocess.mean), *preprocess.size])
    graph = ir.Graph(
        [image],
        [prepared],
        nodes=add.nodes,
        initializers=add.constants,
        opset_imports={"": opset},
        name="preparation",
    )
    return ir.Model(graph, ir_version=IR_VERSION)


def write_preparation(preprocess: Preprocess, resize: str, path: Path) -> None:
    """Write a model of the preparation alone."""
    ir.save(preparation_model(preprocess, resize), path)


def _luma(add: Section, image: ir.Value) -> ir.Value:
    """Convert RGB to grey as Pillow does: ITU-R 601-2 in 16 bits."""
    weighted = add("Mul", add("Cast", image, to=ir.DataType.INT32), LUMA.ravel().astype(np.int32))
    total = add("ReduceSum", weighted, [3], keepdims=1)
    rounded = add("Div", add("Add", total, np.int32(0x8000)), np.int32(0x10000))
    return add("Cast", rounded, to=ir.DataType.UINT8)


def _resized_hw(add: Section, image_hw: ir.Value, preprocess: Preprocess) -> ir.Value:
    """Compute the size before the crop, int64 (2,), as `images.prepare.resized_hw` does."""
    rows, columns = size_before_crop(preprocess)
    if preprocess.crop_mode == "squash":
        return add.constant([rows, columns])
    is_border = preprocess.crop_mode == "border"
    if rows == columns and not is_border:
        return add("Div", add("Mul", image_hw, rows), add("ReduceMin", image_hw))
    # in float64, as in Python, since the roundings of the quotients count
    sides = add("Cast", image_hw, to=ir.DataType.DOUBLE)
    wanted = add("Cast", [rows, columns], to=ir.DataType.DOUBLE)
    ratio = add("ReduceMax" if is_border else "ReduceMin", add("Div", sides, wanted))
    resized = add("Cast", add("Round", add("Div", sides, ratio)), to=ir.DataType.INT64)
    return add("Max", resized, [1]) if is_border else resized


def _crop_start(add: Section, resized_hw: ir.Value, preprocess: Preprocess) -> ir.Value:
    """Compute the first row and column of the crop: half of the rest, rounded to even.

    It is negative where a border precedes the image: half of it, rounded towards zero.
    """
    rest = add("Sub", resized_hw, list(preprocess.size))
    more = add("Max", rest, [0]) if preprocess.crop_mode == "border" else rest
    odd = add("Mod", add("Div", more, 2), 2)
    return add("Div", add("Add", rest, odd), 2)


def _bordered(
    add: Section,
    planes: ir.Value,
    resized_hw: ir.Value,
    start: ir.Value,
    preprocess: Preprocess,
) -> ir.Value:
    """Move what was cut to its place, (B, C, R, S), and fill what it does not cover."""
    shift, size = add("Min", start, [0]), add("Min", resized_hw, list(preprocess.size))
    covered = []
    for axis, side in enumerate(preprocess.size):
        first, count = (add("Slice", x, [axis], [axis + 1], [0]) for x in (shift, size))
        places = add("Add", np.arange(side), first)
        last = add("Sub", count, 1)
        index = add("Max", add("Min", places, last), [0])
        planes = add("Gather", planes, index, axis=axis + 2)
        covered.append(add("Equal", places, index))
    inside = add("And", add("Unsqueeze", covered[0], [1]), covered[1])
    fill = border_color(preprocess).astype(np.float32)
    return add("Where", inside, planes, fill[:, None, None])


def _rows_first(add: Section, image_hw: ir.Value, resized_hw: ir.Value) -> ir.Value:
    """Compute whether rows are interpolated before columns: `images.prepare.rows_first`."""
    rest = add("Sub", image_hw, resized_hw)
    rows, columns = (add("Slice", rest, [axis], [axis + 1], [0]) for axis in (0, 1))
    return add("Greater", rows, add("Max", add("Mul", columns, 2), [0]))


def _resized(
    add: Section,
    pixels: ir.Value,
    image_hw: ir.Value,
    resized_hw: ir.Value,
    start: ir.Value,
    preprocess: Preprocess,
) -> ir.Value:
    """Interpolate rows and columns by a Resize node each, and cut after each.

    ONNX Runtime's antialiasing is a port of Pillow's. A node that leaves one side as it is changes
    nothing along it.
    """
    rows_first = _rows_first(add, image_hw, resized_hw)
    sides_now = add("Xor", rows_first, np.array([False, True]))
    for sides in (sides_now, add("Not", sides_now)):  # that a node resizes: height, width
        given_hw = add("Shape", pixels, start=1, end=3)
        wanted_hw = add("Where", sides, resized_hw, given_hw)
        pixels = add(
            "Resize",
            pixels,
            None,
            None,
            wanted_hw,
            axes=[1, 2],
            antialias=1,
            coordinate_transformation_mode="half_pixel",
            cubic_coeff_a=A,
            exclude_outside=1,  # at the border Pillow uses the pixels that there are
            mode=MODES[preprocess.interpolation],
        )
        first = add("Where", sides, start, [0, 0])
        last = add("Add", first, add("Where", sides, list(preprocess.size), given_hw))
        pixels = add("Slice", pixels, first, last, [1, 2])
    return pixels


def _nearest(
    add: Section,
    pixels: ir.Value,
    image_hw: ir.Value,
    resized_hw: ir.Value,
    start: ir.Value,
    size: tuple[int, int],
) -> ir.Value:
    """Pick the pixels that Pillow picks: it adds up the steps between them in float64."""
    steps = add("Div", *(add("Cast", x, to=ir.DataType.DOUBLE) for x in (image_hw, resized_hw)))
    ends, lasts = add("Add", start, list(size)), add("Sub", image_hw, 1)
    for axis in (0, 1):
        step, first, end, last = (
            add("Slice", x, [axis], [axis + 1], [0]) for x in (steps, start, ends, lasts)
        )
        others = add("Expand", step, add("Sub", end, 1))
        centers = add("Concat", add("Mul", step, np.float64(0.5)), others, axis=0)
        places = add("Slice", add("CumSum", centers, 0), first, end, [0])
        index = add("Min", add("Cast", places, to=ir.DataType.INT64), last)
        pixels = add("Gather", pixels, index, axis=axis + 1)
    return pixels


def _normalized(add: Section, planes: ir.Value, preprocess: Preprocess) -> ir.Value:
    """Normalise in float32, to the bits of `images.prepare.normalize`."""
    mean, std = (np.array(x, np.float32)[:, None, None] for x in (preprocess.mean, preprocess.std))
    scaled = add("Div", planes, np.float32(255))
    return add("Div", add("Sub", scaled, mean), std)

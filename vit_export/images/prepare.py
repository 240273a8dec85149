"""Prepare images for a model as its manifest requires: resize, crop and normalise.

The pixels are those of timm's evaluation transform (`timm.data.create_transform`) on
`image.convert(color)`: both resize with Pillow, so with Pillow 13 they agree to the bit. An array
that already has the model's size needs numpy only. Shape letters: B batch, C channels, H W pixels.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from vit_export.artifact.preprocess import Preprocess
from vit_export.errors import ImageError
from vit_export.images.decode import MAX_PIXELS, Decoded, ImageSource, Pixels, decode, require


def prepare_batch(images: Iterable[ImageSource], preprocess: Preprocess) -> npt.NDArray[np.float32]:
    """Prepare several images, of any sizes, as one batch of `pixel_values`.

    Args:
        images: Each as `decode` takes it; a uint8 array (B, H, W, C) is B images.
        preprocess: From the artifact's manifest.

    Returns:
        float32 (B, C, H, W).

    Raises:
        ImageError: No images, a single image, or one that cannot be prepared; it is named.
    """
    is_one_image = isinstance(images, np.ndarray) and images.ndim != 4
    if is_one_image or not isinstance(images, Iterable) or isinstance(images, str | bytes):
        raise ImageError(
            f"a batch was given as one {type(images).__name__}, expected several images or an "
            "array (B, H, W, C)",
            hint="put a single image into a list",
        )
    batch: list[Pixels] = []
    for index, image in enumerate(images):
        try:
            batch.append(resize_and_crop(image, preprocess))
        except ImageError as error:  # noqa: PERF203 - to count them is the purpose
            raise ImageError(f"image {index}: {error.message}", hint=error.hint) from error
    if not batch:
        raise ImageError("an empty batch was given, expected at least one image")
    return normalize(np.stack(batch), preprocess)


def normalize(pixels: npt.NDArray[Any], preprocess: Preprocess) -> npt.NDArray[np.float32]:
    """Normalise pixels, 0 to 255 (..., H, W, C), to contiguous float32 (..., C, H, W).

    All is computed in float32: the same bits as torchvision's `ToTensor` and `Normalize`.
    """
    values = np.moveaxis(pixels, -1, -3).astype(np.float32, order="C")
    values /= np.float32(255)
    values -= np.array(preprocess.mean, dtype=np.float32)[:, None, None]
    values /= np.array(preprocess.std, dtype=np.float32)[:, None, None]
    return values


def resize_and_crop(image: ImageSource, preprocess: Preprocess) -> Pixels:
    """Convert one image to the model's colour space, resize it, and cut its centre.

    Returns:
        uint8 (H, W, C) of `preprocess.size`. It may share the memory of an array given.

    Raises:
        ImageError: The image cannot be prepared.
        UsageError: The preparation is not known.
    """
    preprocess.check_known("the model")
    pixels = _resize(decode(image, preprocess.color), preprocess)
    if pixels.shape[2] != len(preprocess.mean):
        raise _wrong_channels(pixels, len(preprocess.mean))
    return _center_crop(pixels, preprocess)


def whole_image(image: ImageSource, preprocess: Preprocess) -> Pixels:
    """Decode one image for a graph that prepares it itself.

    Returns:
        uint8 (H, W, C): RGB, or the model's channels where it reads neither RGB nor grey.
    """
    pixels = as_array(decode(image, "RGB" if preprocess.color else ""))
    channels = 3 if preprocess.color else len(preprocess.mean)
    if pixels.shape[2] != channels:
        raise _wrong_channels(pixels, channels)
    _check_elongation(pixels.shape[0], pixels.shape[1], preprocess)
    return pixels


def _wrong_channels(pixels: Pixels, channels: int) -> ImageError:
    return ImageError(
        f"an array of {pixels.shape[2]} channels was given, the model reads {channels}",
        hint="the channels come last: (H, W, C)",
    )


def _check_elongation(height: int, width: int, preprocess: Preprocess) -> tuple[int, int]:
    """Return the size of an image before the crop; ImageError where that takes too much memory."""
    rows, columns = resized_hw(height, width, preprocess)
    if (rows, columns) != (height, width) and rows * columns > MAX_PIXELS:
        raise ImageError(
            f"an image of (H, W) = {height, width} is too elongated: with its short side resized "
            f"for the model it would be {rows, columns}",
            hint="crop it first",
        )
    return rows, columns


def as_array(picture: Decoded) -> Pixels:
    """Return the pixels of a decoded image, uint8 (H, W, C); they may share its memory."""
    array = np.asarray(picture)
    return array if array.ndim == 3 else array[:, :, None]


def before_preparation(pixels: Pixels, preprocess: Preprocess) -> Pixels:
    """Return images whose preparation gives these pixels: with a black frame, which is cut off.

    Takes uint8 (B, H, W, C) of the model's size, and returns it of the size before the crop; RGB
    where the model reads grey images.
    """
    margins = [
        (before := round((whole - side) / 2), whole - side - before)
        for whole, side in zip(size_before_crop(preprocess), preprocess.size, strict=True)
    ]
    framed = np.pad(pixels, [(0, 0), *margins, (0, 0)])
    return np.repeat(framed, 3, axis=3) if preprocess.color == "L" else framed


def size_before_crop(preprocess: Preprocess) -> tuple[int, int]:
    """Return height and width from which the model's size is cut, of an image of its aspect."""
    rows, columns = (math.floor(side / preprocess.crop_pct) for side in preprocess.size)
    return rows, columns


def resized_hw(height: int, width: int, preprocess: Preprocess) -> tuple[int, int]:
    """Return the size before the crop: timm 1.0 `transforms_imagenet_eval`, with its roundings."""
    rows, columns = size_before_crop(preprocess)
    if preprocess.crop_mode == "squash":
        return rows, columns
    if preprocess.crop_mode == "border":  # timm's ResizeKeepRatio(longest=1), which can give 0
        ratio = max(height / rows, width / columns)
        return max(1, round(height / ratio)), max(1, round(width / ratio))
    if rows != columns:  # timm's ResizeKeepRatio
        ratio = min(height / rows, width / columns)
        return round(height / ratio), round(width / ratio)
    if width <= height:  # torchvision's Resize of the short side
        return int(rows * height / width), rows
    return rows, int(rows * width / height)


def rows_first(given: tuple[int, int], wanted: tuple[int, int]) -> bool:
    """Return whether rows are interpolated before columns, as in Pillow 13; sizes are (H, W).

    Each pass rounds to 8 bits, so that the order shows: in up to 25 of 255 levels where bicubic
    overshoots. Pillow 12 and earlier interpolate columns first.
    """
    rows, columns = (have - want for have, want in zip(given, wanted, strict=True))
    return rows > max(2 * columns, 0)


def _resize(picture: Decoded, preprocess: Preprocess) -> Pixels:
    """Resize with Pillow, unless the image has its size before the crop already."""
    given = picture.shape[:2] if isinstance(picture, np.ndarray) else picture.size[::-1]
    height, width = _check_elongation(given[0], given[1], preprocess)
    if given == (height, width):
        return as_array(picture)
    require("PIL.Image", "resizing an image needs Pillow", package="pillow")
    from PIL import Image

    method = Image.Resampling[preprocess.interpolation.upper()]

    def resize(image: Image.Image) -> Image.Image:
        if method is not Image.Resampling.NEAREST and rows_first(given, (height, width)):
            image = image.resize((image.width, height), method)  # same pixels with any Pillow
        return image.resize((width, height), method)

    if isinstance(picture, np.ndarray) and picture.shape[2] != 3:
        # channel by channel: Pillow would take a fourth for transparency
        planes = (Image.fromarray(plane) for plane in np.moveaxis(picture, -1, 0))
        return np.stack([np.asarray(resize(plane)) for plane in planes], axis=-1)
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    return as_array(resize(image))


def border_color(preprocess: Preprocess) -> npt.NDArray[np.uint8]:
    """Return the level of each channel of a border: the mean, as timm rounds it."""
    return np.clip(np.round(255 * np.array(preprocess.mean)), 0, 255).astype(np.uint8)


def _center_crop(pixels: Pixels, preprocess: Preprocess) -> Pixels:
    """Cut out the centre as torchvision's `center_crop` and timm's `center_crop_or_pad`."""
    size = preprocess.size
    missing = [max(0, want - have) for want, have in zip(size, pixels.shape, strict=False)]
    if any(missing):
        whole = [lack + have for lack, have in zip(missing, pixels.shape, strict=False)]
        fill = border_color(preprocess) if preprocess.crop_mode == "border" else 0
        padded = np.full((*whole, pixels.shape[2]), fill, np.uint8)
        inside = (slice(lack // 2, lack // 2 + have)
                  for lack, have in zip(missing, pixels.shape, strict=False))  # fmt: skip
        padded[(*inside,)] = pixels
        pixels = padded
    top, left = (round((have - want) / 2) for want, have in zip(size, pixels.shape, strict=False))
    return pixels[top : top + size[0], left : left + size[1]]

"""From an image file, Pillow image or array to `pixel_values`, as a manifest says.

The pixels are those of timm's evaluation transform (`timm.data.create_transform`) on
`image.convert(color)`: both resize with Pillow, so they agree to the bit. Beyond timm,
EXIF orientation is applied and 16-bit grey is scaled to 8 bits instead of clipped.

Pillow is imported where a file is read or a picture resized; an array that has the
model's size already needs numpy only. Shape letters: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import io
import math
import os
import struct
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from vit_export.artifact.manifest import Preprocess
from vit_export.errors import ImageError

if TYPE_CHECKING:
    from PIL import Image

Pixels: TypeAlias = npt.NDArray[np.uint8]
ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO | Image.Image | Pixels"

MAX_PIXELS = 178_956_970  # where Pillow too refuses: a decoded RGB image of 0.7 GB

_CHANNELS = {"RGB": 3, "L": 1}
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")

_EXIF_ORIENTATION = 0x0112
# EXIF orientation -> the transposition that undoes it
_UPRIGHT = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE",
            6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}  # fmt: skip
_WHOLE_RANGE_I = ("PNG", "PPM")  # formats whose mode "I" runs from 0 to 65535 by definition

# What Pillow's readers raise on a header that is not of their format ...
_NOT_THIS_FORMAT = (SyntaxError, IndexError, TypeError, struct.error)
# ... and on damaged data; a Warning where the user turns warnings into errors.
_DAMAGED = (*_NOT_THIS_FORMAT, OSError, EOFError, ValueError, KeyError, AttributeError,
            OverflowError, RuntimeError, zlib.error, Warning)  # fmt: skip


def prepare(image: ImageSource, preprocess: Preprocess) -> npt.NDArray[np.float32]:
    """Turn one image into what the model reads.

    Args:
        image: Path, Pillow image, or uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4);
            with `color == ""` an array (H, W, C) only.
        preprocess: From the artifact's manifest.

    Returns:
        float32 (C, H, W), without the batch dimension.

    Raises:
        ImageError: The image cannot be read, or cannot become what the model reads.
    """
    return normalize(resize_and_crop(image, preprocess), preprocess)


def prepare_batch(
    images: Iterable[ImageSource], preprocess: Preprocess, *, first: int = 0
) -> npt.NDArray[np.float32]:
    """Turn several images, of any sizes, into one batch.

    Args:
        images: Each as `prepare` takes it; a uint8 array (B, H, W, C) is B images.
        preprocess: From the artifact's manifest.
        first: What an error calls the first image, where these are a part of a larger batch.

    Returns:
        float32 (B, C, H, W).

    Raises:
        ImageError: No images, a single image, or one that `prepare` refuses (and which).
    """
    is_one_image = isinstance(images, np.ndarray) and images.ndim != 4
    if is_one_image or not isinstance(images, Iterable) or isinstance(images, str | bytes):
        raise ImageError(
            f"a batch was given as one {type(images).__name__}, expected several images or an "
            "array (B, H, W, C); put a single image into a list"
        )
    batch: list[Pixels] = []
    for index, image in enumerate(images, start=first):
        try:
            batch.append(resize_and_crop(image, preprocess))
        except ImageError as error:  # noqa: PERF203 - to count them is the purpose
            raise ImageError(f"image {index} of the batch: {error}") from error
    if not batch:
        raise ImageError("an empty batch was given, expected at least one image")
    return normalize(np.stack(batch), preprocess)


def normalize(pixels: Pixels, preprocess: Preprocess) -> npt.NDArray[np.float32]:
    """Scale to [0, 1], subtract the mean, divide by the standard deviation.

    In float32 and the order of torchvision's `ToTensor` and `Normalize`: theirs to the bit.

    Args:
        pixels: uint8 (..., H, W, C).
        preprocess: From the artifact's manifest.

    Returns:
        float32 (..., C, H, W), contiguous.

    Raises:
        ImageError: Another dtype or number of channels.
    """
    _check_impossible(preprocess)
    _check_other_than_uint8(pixels)
    if pixels.ndim < 3 or pixels.shape[-1] != len(preprocess.mean):
        raise ImageError(
            f"pixels of shape {pixels.shape} were given to normalise, expected "
            f"(..., H, W, {len(preprocess.mean)})"
        )
    values = np.moveaxis(pixels, -1, -3).astype(np.float32, order="C")
    values /= np.float32(255)
    values -= np.array(preprocess.mean, dtype=np.float32)[:, None, None]
    values /= np.array(preprocess.std, dtype=np.float32)[:, None, None]
    return values


def resize_and_crop(image: ImageSource, preprocess: Preprocess) -> Pixels:
    """Bring one image to the model's size and colour.

    Args:
        image: As `prepare` takes it.
        preprocess: From the artifact's manifest.

    Returns:
        uint8 (H, W, C) of `preprocess.size`. It may share the memory of an array given.

    Raises:
        ImageError: As `prepare`.
    """
    _check_impossible(preprocess)
    picture = _in_color(image, preprocess.color)
    pixels = _resize(picture, _resized_hw(_hw(picture), preprocess), preprocess.interpolation)
    if pixels.shape[2] != len(preprocess.mean):
        raise ImageError(
            f"an array of {pixels.shape[2]} channels was given, the model reads "
            f"{len(preprocess.mean)}; the channels come last: (H, W, C)"
        )
    return _center_crop(pixels, preprocess.size)


def load_image(source: ImageSource, *, color: str = "RGB") -> Pixels:
    """Decode an image, turn it upright, bring it to 8 bits and to one colour space.

    Transparency is dropped, as by Pillow's `convert`; an animation gives its first frame.

    Args:
        source: As `prepare` takes it.
        color: `"RGB"`, `"L"` (grey), or `""` to take an array (H, W, C) as it is.

    Returns:
        uint8 (H, W, C), read-only or sharing the memory of an array given.

    Raises:
        ImageError: Not an image, damaged, too large, or of an unknown range of values.
    """
    return _pixels(_in_color(source, color))


def _in_color(source: ImageSource, color: str) -> Image.Image | Pixels:
    """Decode; a Pillow image stays one, so that resizing it costs no copy."""
    if isinstance(source, np.ndarray):
        return _array_in_color(source, color)
    pillow = sys.modules.get("PIL.Image")  # who has a Pillow image has imported Pillow
    is_pillow = pillow is not None and isinstance(source, pillow.Image)
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode(io.BytesIO(source), f"an image of {len(source)} bytes", color)
    if hasattr(source, "read"):
        name = getattr(source, "name", type(source).__name__)
        return _decode(io.BytesIO(source.read()), f"the file object {name}", color)
    if not is_pillow and not isinstance(source, str | os.PathLike):
        raise ImageError(
            f"an image was given as {type(source).__module__}.{type(source).__name__}, expected "
            "a path, a Pillow image or a uint8 array (H, W, C)"
        )
    if not color:
        raise ImageError(
            "a file or Pillow image was given to a model that reads neither RGB nor grey; "
            "give it a uint8 array (H, W, C)"
        )
    if isinstance(source, str | os.PathLike):
        return _read_file(source, color)
    return _pillow_in_color(source, color, name=f"the Pillow image of mode {source.mode!r}")


def _array_in_color(array: Pixels, color: str) -> Pixels:
    _check_other_than_uint8(array)
    if array.ndim == 2 and color:
        array = array[:, :, None]
    if array.size == 0 or array.ndim != 3 or (color and array.shape[2] not in (1, 3, 4)):
        raise ImageError(
            f"an array of shape {array.shape} was given as an image, expected (H, W, C) with at "
            f"least one pixel and {'1, 3 or 4' if color else 'all'} channels; "
            + ("give several images to prepare_batch" if array.ndim == 4 else
               "array.transpose(1, 2, 0) moves the channels from the front to the end")
        )  # fmt: skip
    if not color:
        return array
    array = array[:, :, :3]  # without alpha
    if color == "RGB":
        return array if array.shape[2] == 3 else np.repeat(array, 3, axis=2)
    return array if array.shape[2] == 1 else _grey(array)


def _grey(rgb: Pixels) -> Pixels:
    """ITU-R 601-2 luma in Pillow's fixed-point arithmetic: (H, W, 3) to (H, W, 1)."""
    weights = np.array([[19595], [38470], [7471]], dtype=np.uint32)
    return ((rgb @ weights + 0x8000) >> 16).astype(np.uint8)


def _read_file(path: str | os.PathLike[str], color: str) -> Image.Image:
    name = os.fspath(path)
    _require_pillow(f"reading {name}")
    try:
        with Path(name).open("rb") as stream:
            return _decode(stream, name, color)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ImageError(f"{name}: {error.strerror}; expected an image file") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise ImageError(f"{name}: cannot be read as an image ({error})") from error


def _decode(stream: BinaryIO, name: str, color: str) -> Image.Image:
    _require_pillow(f"reading {name}")
    from PIL import Image

    try:
        if not stream.read(1):
            raise ImageError(f"{name}: the file is empty (0 bytes), expected an image")
        stream.seek(0)
        image = _identify(stream, name)
        if image.width * image.height > MAX_PIXELS:
            raise ImageError(
                f"{name}: {image.width} x {image.height} pixels, expected at most "
                f"{MAX_PIXELS:,}, for fear of a decompression bomb; give an array if it is none"
            )
        return _pillow_in_color(image, color, name=name)
    except (Image.DecompressionBombError, *_DAMAGED) as error:
        raise ImageError(f"{name}: cannot be read as an image ({error})") from error


def _identify(stream: BinaryIO, name: str) -> Image.Image:
    """`PIL.Image.open` without its check, which warns from half of `MAX_PIXELS` on.

    Neither `warnings.catch_warnings` nor `Image.MAX_IMAGE_PIXELS` silences it in a way that
    is safe beside other threads.
    """
    from PIL import Image

    prefix = stream.read(16)
    tried: set[str] = set()
    findings: list[str] = []
    for register_readers in (Image.preinit, Image.init):
        register_readers()
        for format_name in [known for known in Image.ID if known not in tried]:
            tried.add(format_name)
            factory, accept = Image.OPEN[format_name]
            verdict = accept(prefix) if accept else True
            if isinstance(verdict, str):  # e.g. a codec that this Pillow was built without
                findings.append(verdict)
            elif verdict:
                stream.seek(0)
                try:
                    return factory(stream, name)
                except _NOT_THIS_FORMAT as error:
                    if accept:
                        findings.append(f"it starts like {format_name}, but: {error}")
    reason = f" ({'; '.join(findings)})" if findings else ""
    raise ImageError(
        f"{name}: is not an image that Pillow reads{reason}; expected JPEG, PNG or the like"
    )


def _pillow_in_color(image: Image.Image, color: str, *, name: str) -> Image.Image:
    """Decode, bring to 8 bits, turn upright, convert; the image given stays as it is."""
    from PIL import Image

    try:
        image.load()
        method = _turn(image)
        image = _eight_bits(image, name=name)
        if method is not None:
            image = image.transpose(Image.Transpose[method])
        if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
            image = image.convert("RGBA")  # same colours; straight to RGB, Pillow warns
        return image if image.mode == color else image.convert(color)
    except _DAMAGED as error:
        raise ImageError(f"{name}: cannot be decoded to {color!r} ({error})") from error


def _turn(image: Image.Image) -> str | None:
    """The turn that EXIF asks for; none where EXIF is missing or too damaged to read."""
    try:
        return _UPRIGHT.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except _DAMAGED:
        return None


def _eight_bits(image: Image.Image, *, name: str) -> Image.Image:
    """Scale 16-bit grey to 8 bits: round(value / 257), which maps 65535 to 255."""
    from PIL import Image

    if image.mode == "F" or (image.mode == "I" and image.format not in _WHOLE_RANGE_I):
        kind = "floating point" if image.mode == "F" else "32-bit integer"
        raise ImageError(
            f"{name}: has {kind} pixels of unknown range, expected 8 or 16 bits; scale them to "
            "0..255 and give a uint8 array"
        )
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image).astype(np.int64)
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _hw(picture: Image.Image | Pixels) -> tuple[int, int]:
    height, width = picture.shape[:2] if isinstance(picture, np.ndarray) else picture.size[::-1]
    return height, width


def _pixels(picture: Image.Image | Pixels) -> Pixels:
    array = np.asarray(picture)
    return array if array.ndim == 3 else array[:, :, None]


def _resized_hw(hw: tuple[int, int], preprocess: Preprocess) -> tuple[int, int]:
    """Size before the crop: timm 1.0 `transforms_imagenet_eval`, with its roundings."""
    height, width = hw
    rows, columns = (math.floor(side / preprocess.crop_pct) for side in preprocess.size)
    if preprocess.crop_mode == "squash":
        return rows, columns
    if rows != columns:  # timm's ResizeKeepRatio
        ratio = min(height / rows, width / columns)
        return round(height / ratio), round(width / ratio)
    if width <= height:  # torchvision's Resize of the short side
        return int(rows * height / width), rows
    return rows, int(rows * width / height)


def _resize(picture: Image.Image | Pixels, hw: tuple[int, int], interpolation: str) -> Pixels:
    """Resize to (H, W) with Pillow; nothing happens where the size is right already."""
    if _hw(picture) == hw:
        return _pixels(picture)
    height, width = hw
    if height * width > MAX_PIXELS:
        raise ImageError(
            f"an image of (H, W) = {_hw(picture)} is too elongated: with its short side resized "
            f"for the model it would be {hw}; crop it first"
        )
    _require_pillow("resizing an image")
    from PIL import Image

    method = Image.Resampling[interpolation.upper()]
    if not isinstance(picture, np.ndarray):
        return _pixels(picture.resize((width, height), method))
    if picture.shape[2] == 3:
        return _pixels(Image.fromarray(picture).resize((width, height), method))
    # One by one: Pillow treats the channels alike, but takes a fourth for transparency.
    planes = (Image.fromarray(plane) for plane in np.moveaxis(picture, -1, 0))
    return np.stack([np.asarray(p.resize((width, height), method)) for p in planes], axis=-1)


def _center_crop(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Cut `size` out of the middle; torchvision's `center_crop`, zeros where it is larger."""
    missing = [max(0, want - have) for want, have in zip(size, pixels.shape, strict=False)]
    if any(missing):
        margins = [(lack // 2, (lack + 1) // 2) for lack in missing]
        pixels = np.pad(pixels, [*margins, (0, 0)])
    top, left = (round((have - want) / 2) for want, have in zip(size, pixels.shape, strict=False))
    return pixels[top : top + size[0], left : left + size[1]]


def _check_other_than_uint8(array: Pixels) -> None:
    if array.dtype != np.uint8:
        raise ImageError(
            f"pixels were given as {array.dtype}, expected uint8 (H, W, C) with values 0..255, "
            "before any normalisation"
        )


def _check_impossible(preprocess: Preprocess) -> None:
    """Raise ImageError where the preparation itself cannot be followed."""
    channels = _CHANNELS.get(preprocess.color, len(preprocess.mean))
    possible = {
        "size": len(preprocess.size) == 2 and min(preprocess.size) > 0,
        "crop_pct": 0 < preprocess.crop_pct < math.inf,
        "interpolation": preprocess.interpolation in _INTERPOLATIONS,
        "color": preprocess.color in (*_CHANNELS, ""),
        "crop_mode": preprocess.crop_mode in ("center", "squash"),
        "mean": len(preprocess.mean) == channels,
        "std": len(preprocess.std) == channels and all(preprocess.std),
    }
    for field, holds in possible.items():
        if not holds:
            raise ImageError(
                f"the manifest prepares images with {field}={getattr(preprocess, field)!r}, "
                "which this vit-export cannot follow; export the model again"
            )


def _require_pillow(purpose: str) -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise ImageError(f"{purpose} needs Pillow: pip install pillow") from error

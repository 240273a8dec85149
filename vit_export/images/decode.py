"""Decode an image: any supported file, bytes, Pillow image or array to uint8 in one colour space.

EXIF orientation is applied, 16-bit grey is scaled to 8 bits instead of clipped, and transparency
is dropped, as Pillow's `convert` does. Pillow is imported only when it is needed: on a device
whose images are arrays, numpy is enough. Shape letters: C channels, H W pixels.
"""

from __future__ import annotations

import importlib
import io
import os
import struct
import sys
import zlib
from contextlib import suppress
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from vit_export.artifact.open_file import open_file
from vit_export.errors import ImageError

if TYPE_CHECKING:
    from PIL import Image

Pixels: TypeAlias = npt.NDArray[np.uint8]
Decoded: TypeAlias = "Image.Image | Pixels"
ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO | Image.Image | Pixels"

# Pillow's name of each format that is read, and the suffixes of its files. No other reader of
# Pillow is tried: the one for EPS would start Ghostscript.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jfif", ".mpo"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k"),
    "HEIF": (".heic", ".heif"),  # read by pillow-heif, where it is installed
}
SUFFIXES = tuple(sorted(suffix for suffixes in FORMATS.values() for suffix in suffixes))
BYTES = (bytes, bytearray, memoryview)  # types of an image file's content
MAX_PIXELS = 178_956_970  # Pillow's own limit too: a decoded RGB image of 0.5 GB

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# EXIF orientation -> the transposition that undoes it; `ImageOps.exif_transpose` copies every image
_UPRIGHT = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE",
            6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}  # fmt: skip
LUMA = np.array([[19595], [38470], [7471]], dtype=np.uint32)  # ITU-R 601-2 in 16 bits, as Pillow

# What Pillow's readers raise on a header that is not of their format ...
_NOT_THIS_FORMAT = (SyntaxError, IndexError, TypeError, struct.error)
# ... and on damaged data; a Warning where the user turns warnings into errors.
_DAMAGED = (*_NOT_THIS_FORMAT, OSError, EOFError, ValueError, KeyError, AttributeError,
            OverflowError, RuntimeError, zlib.error, Warning)  # fmt: skip


def decode(source: ImageSource, color: str) -> Decoded:
    """Decode an image, turn it upright, and convert it to 8 bits and one colour space.

    Args:
        source: Path of a regular file, bytes, binary file object, Pillow image, or uint8 array
            (H, W), (H, W, 1), (H, W, 3) or (H, W, 4). An animation gives its first frame.
        color: `"RGB"`, `"L"` (grey), or `""` to take an array (H, W, C) as it is.

    Returns:
        A Pillow image of mode `color`; an array (H, W, C) where an array was given.
    """
    if isinstance(source, np.ndarray):
        return _convert_array(source, color)
    is_file = isinstance(source, (str, os.PathLike, *BYTES)) or hasattr(source, "read")
    if not is_file and not is_pillow_image(source):
        raise ImageError(
            f"an image was given as {type(source).__module__}.{type(source).__name__}, expected "
            "a path, bytes, a binary file object, a Pillow image or a uint8 array (H, W, C)"
        )
    if not color:
        raise ImageError(
            "a file or Pillow image was given to a model that reads neither RGB nor grey",
            hint="pass a uint8 array (H, W, C) with the model's channels",
        )
    require("PIL.Image", "reading an image needs Pillow", package="pillow")
    if isinstance(source, str | os.PathLike):
        with open_file(source, what="image", error=ImageError) as stream:
            return _read(stream, os.fspath(source), color)
    if isinstance(source, BYTES):
        return _read(io.BytesIO(source), f"{len(source)} bytes", color)
    if hasattr(source, "read"):
        name = f"file object {getattr(source, 'name', type(source).__name__)}"
        try:
            content = source.read()
        except (OSError, ValueError) as error:  # ValueError: it is closed
            raise ImageError(f"{name}: cannot be read ({error})") from error
        if not isinstance(content, bytes):
            raise ImageError(f"{name}: gives text", hint="open the file in binary mode, 'rb'")
        return _read(io.BytesIO(content), name, color)
    return _convert(source, color, name=f"the Pillow image of mode {source.mode!r}")


def is_pillow_image(source: object) -> bool:
    """Whether an object is a Pillow image; Pillow is not imported for it."""
    # another thread may be importing the module: then it has no class yet, and so no image
    image_class = getattr(sys.modules.get("PIL.Image"), "Image", None)
    return image_class is not None and isinstance(source, image_class)


def require(module: str, problem: str, *, package: str) -> ModuleType:
    """Import a module; where it is missing, raise ImageError with the problem and the package."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImageError(problem, hint=f"pip install {package}") from error


def _convert_array(array: Pixels, color: str) -> Pixels:
    if array.dtype != np.uint8:
        raise ImageError(
            f"pixels were given as {array.dtype}, expected uint8 (H, W, C) with values 0..255, "
            "before any normalisation"
        )
    if array.ndim == 2 and color:
        array = array[:, :, None]
    if array.size == 0 or array.ndim != 3 or (color and array.shape[2] not in (1, 3, 4)):
        raise ImageError(
            f"an array of shape {array.shape} was given as an image, expected (H, W, C) with at "
            f"least one pixel and {'1, 3 or 4' if color else 'all'} channels",
            hint="pass several images as a list or as an array (B, H, W, C)"
            if array.ndim == 4
            else "array.transpose(1, 2, 0) moves the channels from the front to the end",
        )
    if not color:
        return array
    array = array[:, :, :3]  # without alpha
    if color == "RGB":
        return array if array.shape[2] == 3 else np.repeat(array, 3, axis=2)
    return array if array.shape[2] == 1 else ((array @ LUMA + 0x8000) >> 16).astype(np.uint8)


def _read(stream: BinaryIO, name: str, color: str) -> Image.Image:
    from PIL import Image

    try:
        image = _identify(stream, name)
        if image.width * image.height > MAX_PIXELS:
            raise ImageError(
                f"{name}: has {image.width} x {image.height} pixels, expected at most "
                f"{MAX_PIXELS:,} (a decompression bomb is larger)",
                hint="if the image is genuine, decode it yourself and pass the array",
            )
        return _convert(image, color, name=name)
    except (Image.DecompressionBombError, *_DAMAGED) as error:
        raise ImageError(f"{name}: cannot be read as an image ({error})") from error


def _identify(stream: BinaryIO, name: str) -> Image.Image:
    """Do what `PIL.Image.open` does, without its warning from half of `MAX_PIXELS` on.

    Neither `warnings.catch_warnings` nor `Image.MAX_IMAGE_PIXELS` silences it in a way that
    is safe in threads.
    """
    from PIL import Image

    prefix = stream.read(16)
    if not prefix:
        raise ImageError(f"{name}: is empty (0 bytes), expected an image")
    findings = []
    importlib.import_module("PIL.JpegImagePlugin")  # all readers take three times as long
    for format_name in FORMATS:
        if format_name not in Image.OPEN:
            Image.preinit()  # the most common readers
        if format_name not in Image.OPEN:
            Image.init()
            if format_name == "HEIF" and prefix[4:8] == b"ftyp" and prefix[8:12] in _HEIF_BRANDS:
                problem = f"{name}: is a HEIC image, which Pillow alone does not read"
                require("pillow_heif", problem, package="pillow-heif").register_heif_opener()
        if format_name not in Image.OPEN:
            continue
        factory, accept = Image.OPEN[format_name]
        verdict = not accept or accept(prefix)
        if isinstance(verdict, str):  # e.g. a codec that this Pillow was built without
            findings.append(verdict)
        elif verdict:
            stream.seek(0)
            try:
                return factory(stream, name)
            except _NOT_THIS_FORMAT as error:
                findings.append(f"it starts like {format_name}, but: {error}")
    reason = f" ({'; '.join(findings)})" if findings else ""
    raise ImageError(f"{name}: is not an image in a supported format{reason}; expected one of "
                     f"{', '.join(FORMATS)}")  # fmt: skip


def _convert(image: Image.Image, color: str, *, name: str) -> Image.Image:
    """Decode, convert to 8 bits, turn upright, convert the colours; leave the image as it is."""
    from PIL import ExifTags, Image

    try:
        image.load()
        method = None
        with suppress(*_DAMAGED):  # of EXIF; the pixels are intact
            method = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        image = _eight_bits(image, name=name)
        if method is not None:
            image = image.transpose(Image.Transpose[method])
        if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
            image = image.convert("RGBA")  # same colours; straight to RGB, Pillow warns
        return image if image.mode == color else image.convert(color)
    except _DAMAGED as error:
        raise ImageError(f"{name}: cannot be decoded to {color!r} ({error})") from error


def _eight_bits(image: Image.Image, *, name: str) -> Image.Image:
    """Scale 16-bit grey to 8 bits: round(value / 257), which maps 65535 to 255."""
    from PIL import Image

    # mode "I" runs from 0 to 65535 by definition in PNG and PPM
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        kind = "floating point" if image.mode == "F" else "32-bit integer"
        raise ImageError(
            f"{name}: has {kind} pixels of unknown range, expected 8 or 16 bits",
            hint="scale them to 0..255 and pass a uint8 array",
        )
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image).astype(np.int64)
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))

"""JPEG and PNG files of every kind that the C++ decoder has to read as Python does."""

from __future__ import annotations

import itertools
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

ORIENTATION = 0x0112
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by PNG colour type
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
TRANSPARENCY = {0: b"\0\1", 2: b"\0\1\0\2\0\3", 3: b"\1\2"}  # a tRNS chunk
# first column, first row, step across, step down of each pass of an interlaced PNG
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
         (0, 1, 1, 2))  # fmt: skip


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file."""
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def png(
    samples: np.ndarray, depth: int, color: int, *, interlaced: bool = False, before: bytes = b"",
    after: bytes = b"", size: tuple[int, int] | None = None,
) -> bytes:  # fmt: skip
    """A PNG file of samples (H, W, C); `before` and `after` are chunks around the pixels."""
    height, width = size or samples.shape[:2]
    passes = [samples]
    if interlaced:
        passes = [samples[y::down, x::across] for x, y, across, down in ADAM7]
    raw = b"".join(b"\0" + _packed(row, depth) for part in passes if part.size for row in part)
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before
    return start + chunk(b"IDAT", zlib.compress(raw)) + after + chunk(b"IEND", b"")


def _packed(row: np.ndarray, depth: int) -> bytes:
    values = row.reshape(-1)
    if depth == 16:
        return values.astype(">u2").tobytes()
    bits = (values[:, None] >> np.arange(depth - 1, -1, -1)) & 1
    return np.packbits(bits.reshape(-1).astype(np.uint8)).tobytes()


def exif(orientation: int) -> Image.Exif:
    """EXIF with an orientation."""
    made = Image.Exif()
    made[ORIENTATION] = orientation
    return made


def xmp(orientation: int) -> bytes:
    """XMP with an orientation."""
    return f'<rdf:Description tiff:Orientation="{orientation}"/>'.encode()


def write_all(folder: Path, photograph: Image.Image) -> list[Path]:
    """Write a few hundred small files; most are crops of a photograph."""
    small = photograph.crop((100, 50, 221, 157))
    _write_png_types(folder)
    sizes = {
        "large": photograph,
        "odd": small.crop((0, 0, 17, 13)),
        "one": small.crop((0, 0, 1, 1)),
    }
    for quality, subsampling, progressive in itertools.product((5, 75, 100), (0, 1, 2), (0, 1)):
        options = {"quality": quality, "subsampling": subsampling, "progressive": bool(progressive)}
        for name, image in {"small": small, **({} if quality == 100 else sizes)}.items():
            image.save(folder / f"{name}-{quality}-{subsampling}-{progressive}.jpg", **options)
    saved: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "grey.jpg": (small.convert("L"), {}),
        "cmyk.jpg": (small.convert("CMYK"), {}),
        "large-cmyk.jpg": (photograph.convert("CMYK"), {"quality": 90}),
        "subsampled-4-1-1.jpg": (small, {"subsampling": "4:1:1"}),
        "restart-markers.jpg": (small, {"restart_marker_blocks": 3}),
        "rgb.jpg": (small, {"keep_rgb": True}),
        "palette.png": (small.quantize(200), {}),
    }
    for orientation in range(1, 9):
        saved[f"exif-{orientation}.jpg"] = (small, {"exif": exif(orientation)})
        saved[f"exif-{orientation}.png"] = (small, {"exif": exif(orientation)})
    for orientation in range(10):
        saved[f"xmp-{orientation}.jpg"] = (small, {"xmp": xmp(orientation)})
    saved["exif-before-xmp.jpg"] = (small, {"exif": exif(3), "xmp": xmp(6)})
    saved["wrong-exif.jpg"] = (small, {"exif": b"Exif\0\0no TIFF at all", "xmp": xmp(6)})
    saved["empty-exif.jpg"] = (small, {"exif": Image.Exif(), "xmp": xmp(6)})
    for name, (image, options) in saved.items():
        image.save(folder / name, **options)
    _write_png_orientations(folder, small)
    # Adobe's marker says how the four channels are coded: 0 is CMYK, 2 is YCCK
    content = (folder / "cmyk.jpg").read_bytes()
    assert content.count(b"Adobe\0d\0\0\0\0\0") == 1
    (folder / "ycck.jpg").write_bytes(content.replace(b"Adobe\0d\0\0\0\0\0", b"Adobe\0d\0\0\0\0\2"))
    return sorted(path for path in folder.iterdir() if path.suffix in (".jpg", ".png"))


def _write_png_types(folder: Path) -> None:
    """Every colour type and depth, interlaced or not, with and without transparency."""
    random = np.random.default_rng(0)
    for color, depths in DEPTHS.items():
        for depth, interlaced, shape in itertools.product(
            depths, (False, True), ((1, 1), (3, 17), (21, 40))
        ):
            samples = random.integers(0, 1 << depth, (*shape, CHANNELS[color]))
            palette = random.integers(0, 256, 3 << depth if color == 3 else 0, dtype=np.uint8)
            before = chunk(b"PLTE", palette.tobytes()) if color == 3 else b""
            name = f"type-{color}-{depth}-{'interlaced' if interlaced else 'plain'}-{shape[0]}"
            content = png(samples, depth, color, interlaced=interlaced, before=before)
            (folder / f"{name}.png").write_bytes(content)
            if color in TRANSPARENCY:
                before += chunk(b"tRNS", TRANSPARENCY[color])
                content = png(samples, depth, color, interlaced=interlaced, before=before)
                (folder / f"{name}-transparent.png").write_bytes(content)


def _write_png_orientations(folder: Path, image: Image.Image) -> None:
    """EXIF before and after the pixels, as ImageMagick's profile, and as XMP."""
    pixels = np.asarray(image)
    stored = chunk(b"eXIf", exif(6).tobytes()[6:])
    (folder / "exif-before.png").write_bytes(png(pixels, 8, 2, before=stored))
    (folder / "exif-after.png").write_bytes(png(pixels, 8, 2, after=stored))
    digits = exif(8).tobytes().hex()
    lines = [digits[i : i + 72] for i in range(0, len(digits), 72)]
    profile = "\n".join(["", "exif", f"  {len(digits) // 2}", *lines])
    for compressed in (False, True):
        text = PngImagePlugin.PngInfo()
        text.add_text("Raw profile type exif", profile, zip=compressed)
        image.save(folder / f"profile-{compressed}.png", pnginfo=text)
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp(5).decode(), zip=compressed)
        image.save(folder / f"xmp-{compressed}.png", pnginfo=text)

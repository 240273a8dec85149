"""Images are decoded to the pixels that Pillow reads, upright, in 8 bits; others are refused."""

from __future__ import annotations

import io
import os
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pillow_heif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vit_export.errors import ImageError
from vit_export.images.decode import MAX_PIXELS, decode, is_pillow_image
from vit_export.images.prepare import as_array

Pixels = npt.NDArray[np.uint8]


def pixels_of(source: Any, color: str = "RGB") -> Pixels:
    """Decode an image to an array (H, W, C)."""
    return as_array(decode(source, color))


def noise(*shape: int, seed: int = 0) -> Pixels:
    """Uniform noise."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    """Save an image and return where."""
    image.save(path, **options)
    return path


@pytest.mark.parametrize("color", ["RGB", "L"])
@pytest.mark.parametrize("transparency", [bytes(range(256)), 7])
def test_a_palette_with_transparency_is_read_without_a_warning(
    transparency: bytes | int, color: str, tmp_path: Path
) -> None:
    """The colours below the transparency are used, as by Pillow's `convert`."""
    image = Image.fromarray(noise(20, 30, 3)).quantize(256)
    path = saved(image, tmp_path / "p.png", transparency=transparency)
    expected = np.asarray(image.convert(color)).reshape(20, 30, -1)
    np.testing.assert_array_equal(pixels_of(path, color), expected)


@pytest.mark.parametrize(
    "name",
    ["a.png", "a.bmp", "a.tiff", "a.ppm", "a.webp", "a.gif", "a.jpg", "a.avif", "a.jp2", "a.mpo"],
)
def test_every_format_gives_the_pixels_that_pillow_reads(name: str, tmp_path: Path) -> None:
    """From a path, a string, bytes, a file object and an open Pillow image."""
    second = {"save_all": True, "append_images": [Image.new("RGB", (33, 21))]}
    options = second if name == "a.mpo" else {}
    path = saved(Image.fromarray(noise(21, 33, 3)), tmp_path / name, **options)
    content = path.read_bytes()
    with Image.open(path) as image, path.open("rb") as stream:
        expected = np.asarray(image.convert("RGB"))
        for source in (path, str(path), content, memoryview(content), stream, image):
            np.testing.assert_array_equal(pixels_of(source), expected)
    grey = np.asarray(Image.open(io.BytesIO(content)).convert("L"))[..., None]
    np.testing.assert_array_equal(pixels_of(path, "L"), grey)


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    """As in Pillow."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    path = saved(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (pixels_of(path) == [255, 0, 0]).all()


def test_arrays_of_one_three_and_four_channels_are_converted() -> None:
    """Grey is repeated, alpha dropped, and RGB turned to grey with Pillow's weights."""
    rgb, grey, rgba = noise(9, 7, 3), noise(9, 7), noise(9, 7, 4)
    luma = np.asarray(Image.fromarray(rgb).convert("L"))[..., None]
    np.testing.assert_array_equal(pixels_of(rgb), rgb)
    np.testing.assert_array_equal(pixels_of(grey), np.stack([grey] * 3, axis=-1))
    np.testing.assert_array_equal(pixels_of(grey[..., None]), np.stack([grey] * 3, axis=-1))
    np.testing.assert_array_equal(pixels_of(rgba), rgba[..., :3])
    np.testing.assert_array_equal(pixels_of(rgb, "L"), luma)
    np.testing.assert_array_equal(pixels_of(grey, "L"), grey[..., None])


def test_grey_is_computed_with_pillows_weights() -> None:
    """In fixed-point arithmetic, over a grid of 64^3 colours."""
    steps = np.arange(0, 256, 4, dtype=np.uint8) + 3
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(512, 512, 3)
    expected = np.asarray(Image.fromarray(grid).convert("L"))[..., None]
    np.testing.assert_array_equal(pixels_of(grid, "L"), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tiff", "a.webp"])
def test_exif_orientation_turns_the_image_upright(
    name: str, orientation: int, tmp_path: Path
) -> None:
    """Once, in every format, from a file or an open image."""
    corner = np.zeros((24, 40, 3), dtype=np.uint8)
    corner[:8, :8] = 255  # upright: the top left corner is white
    upright = Image.fromarray(corner)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's Transpose that stores it so
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(stored, tmp_path / name, exif=exif, **({"quality": 95} if "p" in name else {}))
    from_file = pixels_of(path)
    with Image.open(path) as image:
        from_image = pixels_of(image)
    assert from_file.shape == (24, 40, 3)
    np.testing.assert_allclose(from_file.astype(int), corner.astype(int), atol=60)
    np.testing.assert_array_equal(from_image, from_file)


def test_damaged_exif_leaves_the_image_as_it_is_stored(tmp_path: Path) -> None:
    """The pixels are intact."""
    image = Image.fromarray(noise(8, 12, 3))
    path = saved(image, tmp_path / "a.png", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff\x12")
    np.testing.assert_array_equal(pixels_of(path), np.asarray(image))


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.pgm", "big-endian.tiff"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(name: str, tmp_path: Path) -> None:
    """0..65535 becomes 0..255; Pillow's own conversion clips at 255."""
    values = np.linspace(0, 65535, 30 * 20).astype(np.uint16).reshape(20, 30)
    path = tmp_path / name
    if name == "a.pgm":
        path.write_bytes(b"P5 30 20 65535\n" + values.astype(">u2").tobytes())
    elif name == "big-endian.tiff":
        Image.frombytes("I;16B", (30, 20), values.astype(">u2").tobytes()).save(path)
    else:
        Image.fromarray(values).save(path)
    expected = np.rint(values / 257.0).astype(np.uint8)
    assert expected.max() == 255
    np.testing.assert_array_equal(pixels_of(path, "L")[..., 0], expected)
    np.testing.assert_array_equal(pixels_of(path)[..., 2], expected)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_unknown_range_are_refused(mode: str, tmp_path: Path) -> None:
    """Guessing it from the values would scale each image differently."""
    path = saved(Image.fromarray(noise(8, 8)).convert(mode), tmp_path / "a.tiff")
    with pytest.raises(ImageError, match=r"unknown range.*\nhint: .*uint8"):
        pixels_of(path)


def png(image: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"empty \(0 bytes\)"),
        (b"<html>no such page</html>\n", "not an image in a supported format"),
        (png(Image.fromarray(noise(40, 40, 3)))[:900], "cannot be decoded.*truncated"),
        (png(Image.fromarray(noise(40, 40, 3)))[:20], "cannot be read as an image"),
        (png(Image.fromarray(noise(40, 40, 3))).replace(b"IDAT", b"IDAX"), "bad.png: "),
    ],
)
def test_damaged_files_are_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    """The message names the file and the cause."""
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=reason):
        pixels_of(path)


@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    keep=st.floats(0.02, 1),
)
def test_any_damage_gives_pixels_or_an_image_error(
    kind: str, changes: list[tuple[float, int]], keep: float, tmp_path_factory: Any
) -> None:
    """Nothing else is raised, also where warnings are errors."""
    buffer = io.BytesIO()
    Image.fromarray(noise(12, 10, 3)).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    for where, value in changes:
        content[int(where * len(content))] = value
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content[: max(1, int(keep * len(content)))])
    try:
        pixels = pixels_of(path)
    except ImageError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.size


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """Opening a FIFO would wait for ever, and a device never ends."""
    os.mkfifo(tmp_path / "pipe.png")
    for path, kind in [(tmp_path, "a folder"), (tmp_path / "pipe.png", "pipe"),
                       ("/dev/zero", "device")]:  # fmt: skip
        with pytest.raises(ImageError, match=f"{kind}.*, expected a"):
            decode(path, "RGB")
    saved(Image.fromarray(noise(4, 4, 3)), tmp_path / "real.png")
    (tmp_path / "link.png").symlink_to("real.png")
    np.testing.assert_array_equal(pixels_of(tmp_path / "link.png"), noise(4, 4, 3))


@pytest.mark.parametrize("name", ["drawing.eps", "drawing.png"])
def test_an_eps_file_does_not_start_ghostscript(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its name, and whether Ghostscript is installed or not."""
    path = tmp_path / name
    Image.fromarray(noise(8, 8, 3)).save(path, "EPS")
    started = tmp_path / "started"
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\ntouch {started}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(ghostscript.parent), prepend=os.pathsep)
    with pytest.raises(ImageError, match=rf"{name}: is not an image in a supported format"):
        decode(path, "RGB")
    assert not started.exists()


@pytest.fixture
def heic(tmp_path: Path) -> Path:
    """A HEIC photograph of one colour, 48 x 32 px."""
    path = tmp_path / "IMG_0001.HEIC"
    image = Image.new("RGB", (48, 32), (200, 30, 60))
    pillow_heif.from_pillow(image).save(path, quality=90)
    return path


def test_a_heic_photograph_needs_pillow_heif(heic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hint installs it; it is then used without further steps."""
    monkeypatch.setattr(Image, "OPEN", {k: v for k, v in Image.OPEN.items() if k != "HEIF"})
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pillow_heif", None)
        with pytest.raises(ImageError, match=r"HEIC.*\nhint: pip install pillow-heif$"):
            decode(heic, "RGB")
    pixels = pixels_of(heic)
    assert pixels.shape == (32, 48, 3)
    assert np.abs(pixels.astype(int) - (200, 30, 60)).max() < 8


def test_a_file_object_of_text_is_refused(tmp_path: Path) -> None:
    """The hint says how to open it."""
    (tmp_path / "a.txt").write_text("text")
    with (tmp_path / "a.txt").open() as stream, pytest.raises(ImageError, match="binary mode"):
        decode(stream, "RGB")  # type: ignore[arg-type]


def bitmap_header(width: int, height: int) -> bytes:
    """A PGM header, without pixels."""
    return f"P5 {width} {height} 255\n".encode()


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    """Before it is decoded."""
    path = tmp_path / "bomb.pgm"
    path.write_bytes(bitmap_header(MAX_PIXELS // 10 + 1, 10))
    with pytest.raises(ImageError, match="decompression bomb"):
        pixels_of(path)


def test_an_image_beyond_pillows_own_limit_is_an_image_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The WebP reader checks it, and a program may have lowered it."""
    path = saved(Image.new("RGB", (40, 40)), tmp_path / "a.webp")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="decompression bomb"):
        pixels_of(path)


def test_a_large_image_is_read_without_pillows_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow warns from half of its limit on, which is lowered here to 1000 pixels."""
    path = saved(Image.new("RGB", (40, 40)), tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.warns(Image.DecompressionBombWarning), Image.open(path):
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixels_of(path).shape == (40, 40, 3)


def test_a_path_is_no_pillow_image_while_another_thread_imports_pillow(monkeypatch):
    """The module is there and its class is not yet: the first images of several threads."""
    monkeypatch.setitem(sys.modules, "PIL.Image", ModuleType("PIL.Image"))
    assert not is_pillow_image("photo.jpg")


def test_a_closed_file_is_an_image_error(tmp_path: Path) -> None:
    path = saved(Image.fromarray(noise(21, 33, 3)), tmp_path / "a.png")
    with path.open("rb") as stream:
        pass
    with pytest.raises(ImageError, match=r"a\.png: cannot be read \(read of closed file\)"):
        pixels_of(stream)

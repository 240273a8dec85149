"""`vit_export.images.prepare` against timm, torchvision and Pillow themselves."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image

from vit_export.artifact.manifest import Preprocess
from vit_export.errors import ImageError
from vit_export.images.prepare import (
    MAX_PIXELS,
    load_image,
    normalize,
    prepare,
    prepare_batch,
    resize_and_crop,
)

try:
    import torchvision
except RuntimeError:  # the index's torchvision, built for CUDA, beside a torch for CPUs
    _library = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision
from timm.data import create_transform

assert torchvision.__version__  # timm's transforms are torchvision's

Pixels = npt.NDArray[np.uint8]

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SMALL = Preprocess(size=(16, 16), crop_pct=1.0)


def timm_transform(preprocess: Preprocess, **options: Any) -> Callable[[Image.Image], torch.Tensor]:
    """The evaluation transform of timm for the same preparation."""
    transform: Callable[[Image.Image], torch.Tensor] = create_transform(
        input_size=(len(preprocess.mean), *preprocess.size),
        is_training=False,
        crop_pct=preprocess.crop_pct,
        crop_mode=preprocess.crop_mode,
        interpolation=preprocess.interpolation,
        mean=preprocess.mean,
        std=preprocess.std,
        **options,
    )
    return transform


def timm_pixels(image: Image.Image, preprocess: Preprocess) -> Pixels:
    """Pixels of timm (H, W, C) before normalisation."""
    tensor = timm_transform(preprocess, normalize=False)(image.convert(preprocess.color))
    pixels: Pixels = tensor.permute(1, 2, 0).numpy()
    return pixels


def noise(*shape: int, seed: int = 0) -> Pixels:
    """Uniform noise: every rounding of the resampling is met."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    """Save an image and return where."""
    image.save(path, **options)
    return path


# --- the pixels are timm's ---------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest", "lanczos"])
@pytest.mark.parametrize("photo", ["china.jpg", "flower.jpg"])
def test_photographs_are_prepared_as_timm_does(photo: str, interpolation: str) -> None:
    """Pixels, and the normalised tensor, are timm's to the bit."""
    image = Image.fromarray(load_sample_image(photo))
    preprocess = Preprocess(size=(224, 224), interpolation=interpolation, **IMAGENET)
    np.testing.assert_array_equal(
        resize_and_crop(image, preprocess), timm_pixels(image, preprocess)
    )
    expected = timm_transform(preprocess)(image).numpy()
    actual = prepare(image, preprocess)
    assert actual.dtype == np.float32
    assert actual.flags.c_contiguous
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(
    ("size", "crop_pct"),
    [((224, 224), 0.875), ((384, 384), 1.0), ((224, 160), 0.9), ((96, 320), 0.95), ((35, 36), 1.0),
     ((30, 31), 1.4), ((31, 31), 1.5), ((28, 28), 0.9)],
)  # fmt: skip
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
def test_any_target_size_is_cut_as_timm_does(
    size: tuple[int, int], crop_pct: float, crop_mode: str
) -> None:
    """Square or not, squashed or cut, and padded with zeros where the crop is the larger."""
    preprocess = Preprocess(size=size, crop_pct=crop_pct, crop_mode=crop_mode)
    for shape in [(120, 97), (97, 120), (64, 64)]:
        image = Image.fromarray(noise(*shape, 3))
        np.testing.assert_array_equal(
            resize_and_crop(image, preprocess), timm_pixels(image, preprocess)
        )


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    size=st.tuples(st.integers(1, 48), st.integers(1, 48))
    | st.integers(1, 48).map(lambda side: (side, side)),
    crop_pct=st.sampled_from([0.8, 0.875, 0.9, 0.95, 1.0]),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
)
def test_any_source_size_gives_timms_pixels(
    height: int, width: int, size: tuple[int, int], crop_pct: float, interpolation: str
) -> None:
    """From 1 x 1 to 400 x 400, elongated ones too."""
    pixels = noise(height, width, 3)
    preprocess = Preprocess(size=size, crop_pct=crop_pct, interpolation=interpolation)
    actual = resize_and_crop(pixels, preprocess)
    assert actual.shape == (*size, 3)
    np.testing.assert_array_equal(actual, timm_pixels(Image.fromarray(pixels), preprocess))


@pytest.mark.parametrize("color", ["RGB", "L"])
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "LA", "P", "RGBA", "RGBX", "CMYK", "YCbCr",
                                  "HSV", "PA"])  # fmt: skip
def test_every_pillow_mode_is_converted_as_timm_does(mode: str, color: str) -> None:
    """What `image.convert` makes of a mode is what is resized, and the image is left alone."""
    image = Image.fromarray(noise(40, 50, 3)).convert(mode)
    before = image.tobytes()
    channels = 3 if color == "RGB" else 1
    half = (0.5,) * channels
    preprocess = Preprocess(size=(24, 24), color=color, mean=half, std=half)
    np.testing.assert_array_equal(
        resize_and_crop(image, preprocess), timm_pixels(image, preprocess)
    )
    assert (image.mode, image.size, image.tobytes()) == (mode, (50, 40), before)


@pytest.mark.parametrize("color", ["RGB", "L"])
@pytest.mark.parametrize("transparency", [bytes(range(256)), 7])
def test_a_transparent_palette_png_is_read_without_a_warning(
    transparency: bytes | int, color: str, tmp_path: Path
) -> None:
    """The colours under the transparency count, as with `convert`."""
    image = Image.fromarray(noise(20, 30, 3)).quantize(256)
    path = saved(image, tmp_path / "p.png", transparency=transparency)
    expected = np.asarray(image.convert(color)).reshape(20, 30, -1)
    np.testing.assert_array_equal(load_image(path, color=color), expected)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tiff", "a.ppm", "a.webp", "a.gif", "a.jpg"])
def test_files_hold_the_pixels_that_pillow_reads(name: str, tmp_path: Path) -> None:
    """Given as a string or as a path, formats with and without loss."""
    path = saved(Image.fromarray(noise(21, 33, 3)), tmp_path / name)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(load_image(path), expected)
    np.testing.assert_array_equal(load_image(str(path)), expected)


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    """As Pillow does on opening."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    path = saved(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (load_image(path) == [255, 0, 0]).all()


# --- arrays ------------------------------------------------------------------------------


def test_arrays_of_one_three_and_four_channels_become_the_models_colour() -> None:
    """Grey is repeated, alpha dropped, and RGB turned grey with Pillow's weights."""
    rgb, grey, rgba = noise(9, 7, 3), noise(9, 7), noise(9, 7, 4)
    luma = np.asarray(Image.fromarray(rgb).convert("L"))[..., None]
    np.testing.assert_array_equal(load_image(rgb), rgb)
    np.testing.assert_array_equal(load_image(grey), np.stack([grey] * 3, axis=-1))
    np.testing.assert_array_equal(load_image(grey[..., None]), np.stack([grey] * 3, axis=-1))
    np.testing.assert_array_equal(load_image(rgba), rgba[..., :3])
    np.testing.assert_array_equal(load_image(rgb, color="L"), luma)
    np.testing.assert_array_equal(load_image(grey, color="L"), grey[..., None])


def test_grey_has_pillows_weights_for_every_value_of_a_channel() -> None:
    """Fixed-point arithmetic, checked over a grid of 64^3 colours."""
    steps = np.arange(0, 256, 4, dtype=np.uint8) + 3
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(512, 512, 3)
    expected = np.asarray(Image.fromarray(grid).convert("L"))[..., None]
    np.testing.assert_array_equal(load_image(grid, color="L"), expected)


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_other_numbers_of_channels_are_resized_one_by_one(channels: int) -> None:
    """A fourth channel is not taken for transparency, which would premultiply the others."""
    pixels = noise(40, 30, channels)
    half = (0.5,) * channels
    preprocess = Preprocess(size=(16, 16), color="", mean=half, std=half)
    grey = Preprocess(size=(16, 16), color="L", mean=(0.5,), std=(0.5,))
    expected = [timm_pixels(Image.fromarray(pixels[..., c]), grey) for c in range(channels)]
    np.testing.assert_array_equal(
        resize_and_crop(pixels, preprocess), np.concatenate(expected, axis=-1)
    )


def test_views_with_odd_strides_are_read_right() -> None:
    """A flipped and transposed view is the same picture as its copy."""
    view = noise(50, 40, 3)[::-1, ::2].transpose(1, 0, 2)
    np.testing.assert_array_equal(resize_and_crop(view, SMALL), resize_and_crop(view.copy(), SMALL))


def test_an_array_of_the_models_size_needs_no_pillow() -> None:
    """Where Pillow is missing: numpy alone, or an error that says how to install it."""
    script = """
import sys
sys.modules["PIL"] = None
import numpy as np
from vit_export.errors import ImageError
from vit_export.artifact.manifest import Preprocess
from vit_export.images.prepare import prepare
grey = Preprocess(size=(16, 16), crop_pct=1.0, color="L", mean=(0.5,), std=(0.5,))
rgb = Preprocess(size=(16, 16), crop_pct=1.0)
for preprocess in (grey, rgb):
    for shape in [(16, 16), (16, 16, 1), (16, 16, 3), (16, 16, 4)]:
        prepare(np.zeros(shape, np.uint8), preprocess)
for image in (np.zeros((9, 9, 3), np.uint8), "photo.jpg"):
    try:
        prepare(image, rgb)
    except ImageError as error:
        assert "pip install pillow" in str(error)
    else:
        sys.exit("no error")
heavy = {"torch", "onnx", "timm", "torchvision", "onnxruntime"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_the_module_leaves_pillow_alone() -> None:
    """Pillow is imported where it is needed, not before."""
    script = "import sys, vit_export.images.prepare; sys.exit('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


# --- beyond timm -------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tiff", "a.webp"])
def test_exif_orientation_turns_the_image_upright(
    name: str, orientation: int, tmp_path: Path
) -> None:
    """Once, in every format, given as a file or as an open image."""
    corner = np.zeros((24, 40, 3), dtype=np.uint8)
    corner[:8, :8] = 255  # upright: the top left corner is white
    upright = Image.fromarray(corner)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's Transpose that stores it so
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(stored, tmp_path / name, exif=exif, **({"quality": 95} if "p" in name else {}))
    from_file = load_image(path)
    with Image.open(path) as image:
        from_image = load_image(image)
    assert from_file.shape == (24, 40, 3)
    np.testing.assert_allclose(from_file.astype(int), corner.astype(int), atol=60)
    np.testing.assert_array_equal(from_image, from_file)


def test_damaged_exif_leaves_the_image_as_it_is_stored(tmp_path: Path) -> None:
    """The pixels are whole: a viewer shows them, and so do we."""
    image = Image.fromarray(noise(8, 12, 3))
    path = saved(image, tmp_path / "a.png", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff\x12")
    np.testing.assert_array_equal(load_image(path), np.asarray(image))


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.pgm", "big-endian.tiff"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(name: str, tmp_path: Path) -> None:
    """0..65535 becomes 0..255; Pillow's own conversion clips all above 255."""
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
    np.testing.assert_array_equal(load_image(path, color="L")[..., 0], expected)
    np.testing.assert_array_equal(load_image(path)[..., 2], expected)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_unknown_range_are_refused(mode: str, tmp_path: Path) -> None:
    """Guessing the range from the values would scale each image in its own way."""
    path = saved(Image.fromarray(noise(8, 8)).convert(mode), tmp_path / "a.tiff")
    with pytest.raises(ImageError, match=r"unknown range.*uint8"):
        load_image(path)


# --- normalisation -----------------------------------------------------------------------


def test_normalisation_is_torchvisions_to_the_bit_for_every_value() -> None:
    """All 256 values, in float32, with constants that are not round."""
    preprocess = Preprocess(size=(16, 16), **IMAGENET)
    pixels = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    expected = timm_transform(Preprocess(size=(16, 16), crop_pct=1.0, **IMAGENET))(
        Image.fromarray(pixels)
    )
    np.testing.assert_array_equal(normalize(pixels, preprocess), expected.numpy())


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 5)] * 3),
    mean=st.tuples(*[st.floats(0, 1)] * 3),
    std=st.tuples(*[st.floats(0.05, 1)] * 3),
)
def test_normalisation_can_be_undone(
    shape: tuple[int, int, int], mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    """Values * std + mean give the pixels back, in any batch and in the channel order."""
    pixels = noise(*shape, 3)
    values = normalize(pixels, Preprocess(size=(1, 1), mean=mean, std=std))
    assert values.shape == (shape[0], 3, *shape[1:])
    back = np.moveaxis(values, -3, -1).astype(np.float64) * std + mean
    np.testing.assert_array_equal(np.rint(back * 255).astype(np.uint8), pixels)


def test_a_batch_is_its_images_one_by_one(tmp_path: Path) -> None:
    """Paths, Pillow images and arrays of different sizes beside each other."""
    pixels = [noise(30, 20, 3, seed=1), noise(17, 40, 3, seed=2), noise(16, 16, 3, seed=3)]
    images = [saved(Image.fromarray(pixels[0]), tmp_path / "a.png"), Image.fromarray(pixels[1])]
    batch = prepare_batch([*images, pixels[2]], SMALL)
    assert batch.shape == (3, 3, 16, 16)
    for row, source in zip(batch, pixels, strict=True):
        np.testing.assert_array_equal(row, prepare(source, SMALL))
    four = noise(4, 20, 30, 3)
    np.testing.assert_array_equal(prepare_batch(four, SMALL), prepare_batch(list(four), SMALL))


# --- what is refused ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.zeros((8, 8, 3), np.float32), r"float32, expected uint8 \(H, W, C\)"),
        (np.zeros((8, 8), np.uint16), "uint16, expected uint8"),
        (np.zeros((0, 8, 3), np.uint8), r"\(0, 8, 3\).*at least one pixel"),
        (np.zeros((3, 8, 8), np.uint8), r"\(3, 8, 8\).*transpose\(1, 2, 0\)"),
        (np.zeros((8, 8, 2), np.uint8), "1, 3 or 4 channels"),
        (np.zeros((2, 8, 8, 3), np.uint8), "prepare_batch"),
        (np.zeros(8, np.uint8), r"expected \(H, W, C\)"),
        (torch.zeros(8, 8, 3), r"torch\.Tensor, expected a path"),
        (b"\x89PNG", r"an image of 4 bytes: is not an image"),
        (None, "NoneType"),
        ("nowhere.jpg", "nowhere.jpg: No such file"),
        ("nul\0byte.jpg", "cannot be read"),
    ],
)
def test_what_is_no_image_is_refused(image: Any, reason: str) -> None:
    """The message says what was found and what was expected."""
    with pytest.raises(ImageError, match=reason):
        prepare(image, SMALL)


def png(image: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"empty \(0 bytes\)"),
        (b"just some text\n" * 9, "not an image that Pillow reads"),
        (png(Image.fromarray(noise(40, 40, 3)))[:900], "cannot be decoded.*truncated"),
        (png(Image.fromarray(noise(40, 40, 3)))[:20], "cannot be read as an image"),
        (png(Image.fromarray(noise(40, 40, 3))).replace(b"IDAT", b"IDAX"), "bad.png: "),
    ],
)
def test_damaged_files_are_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    """By name, with the cause."""
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=reason):
        load_image(path)


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    keep=st.floats(0.02, 1),
)
def test_any_damage_gives_pixels_or_an_image_error(
    kind: str, changes: list[tuple[float, int]], keep: float, tmp_path_factory: Any
) -> None:
    """No other exception leaves the reader, with warnings made errors either."""
    buffer = BytesIO()
    Image.fromarray(noise(12, 10, 3)).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    for where, value in changes:
        content[int(where * len(content))] = value
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content[: max(1, int(keep * len(content)))])
    try:
        pixels = load_image(path)
    except ImageError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.size


def test_a_directory_is_refused(tmp_path: Path) -> None:
    """Rather than read as one of the images in it."""
    with pytest.raises(ImageError, match="Is a directory"):
        load_image(tmp_path)


def bitmap_header(width: int, height: int) -> bytes:
    """A PGM header: nothing of the pixels follows."""
    return f"P5 {width} {height} 255\n".encode()


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    """Its header alone is enough to know."""
    path = tmp_path / "bomb.pgm"
    path.write_bytes(bitmap_header(MAX_PIXELS // 10 + 1, 10))
    with pytest.raises(ImageError, match="decompression bomb"):
        load_image(path)


def test_a_bomb_that_a_reader_of_pillow_refuses_itself_is_an_image_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The WebP reader looks at Pillow's own limit, which a program may have lowered."""
    path = saved(Image.new("RGB", (40, 40)), tmp_path / "a.webp")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="decompression bomb"):
        load_image(path)


def test_a_large_image_is_read_without_pillows_warning(tmp_path: Path) -> None:
    """Between half of the limit and the limit Pillow warns, and we do not."""
    side = 9500  # 90 million pixels
    path = saved(Image.new("1", (side, side), 1), tmp_path / "large.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = load_image(path, color="L")
    assert pixels.shape == (side, side, 1)
    assert pixels.min() == 255


def test_an_image_that_resizing_would_blow_up_is_refused() -> None:
    """1 x 200000 pixels would become 248 x 49.6 million."""
    with pytest.raises(ImageError, match="too elongated"):
        prepare(np.zeros((1, 200_000, 3), np.uint8), Preprocess(size=(224, 224)))


def test_channels_that_the_model_does_not_read_are_refused() -> None:
    """With a colour space of its own, a model takes arrays of its own channels only."""
    five = Preprocess(size=(16, 16), color="", mean=(0.5,) * 5, std=(0.5,) * 5)
    assert prepare(noise(16, 16, 5), five).shape == (5, 16, 16)
    with pytest.raises(ImageError, match="4 channels was given, the model reads 5"):
        prepare(noise(16, 16, 4), five)
    with pytest.raises(ImageError, match="neither RGB nor grey"):
        prepare(Image.new("RGB", (16, 16)), five)
    with pytest.raises(ImageError, match=r"\(\.\.\., H, W, 5\)"):
        normalize(noise(16, 16, 3), five)


@pytest.mark.parametrize("images", [noise(16, 16, 3), "photo.jpg", Image.new("L", (4, 4)), []])
def test_what_is_no_batch_is_refused(images: Any) -> None:
    """A single image is not read as a batch of its rows or letters."""
    with pytest.raises(ImageError, match=r"a batch was given as one|an empty batch"):
        prepare_batch(images, SMALL)


def test_a_bad_image_in_a_batch_is_named() -> None:
    """By its place, for arrays have no name."""
    with pytest.raises(ImageError, match=r"image 1 of the batch: .*float64"):
        prepare_batch([noise(16, 16, 3), np.zeros((16, 16, 3))], SMALL)


@pytest.mark.parametrize(
    "change",
    [{"interpolation": "box"}, {"color": "BGR"}, {"crop_mode": "border"}, {"crop_pct": 0.0},
     {"size": (0, 16)}, {"mean": (0.5,)}, {"std": (0.5, 0.0, 0.5)}],
)  # fmt: skip
def test_a_preparation_that_cannot_be_followed_is_refused(change: dict[str, Any]) -> None:
    """Rather than replaced by something near."""
    with pytest.raises(ImageError, match=next(iter(change))):
        prepare(noise(16, 16, 3), Preprocess(**{"size": (16, 16), **change}))

"""Images are prepared as timm, torchvision and Pillow do; what cannot be prepared is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image

from vit_export.artifact.preprocess import CROP_MODES, Preprocess
from vit_export.errors import ImageError
from vit_export.images.prepare import (
    normalize,
    prepare_batch,
    resize_and_crop,
    rows_first,
    whole_image,
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
PILLOW = tuple(int(part) for part in PIL.__version__.split(".")[:1])
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
    """Uniform noise, which meets every rounding of the resampling."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    """Save an image and return where."""
    image.save(path, **options)
    return path


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest", "lanczos"])
@pytest.mark.parametrize("photo", ["china.jpg", "flower.jpg"])
def test_photographs_are_prepared_as_timm_does(photo: str, interpolation: str) -> None:
    """The same pixels and the same normalised tensor, to the bit."""
    image = Image.fromarray(load_sample_image(photo))
    preprocess = Preprocess(size=(224, 224), interpolation=interpolation, **IMAGENET)
    np.testing.assert_array_equal(
        resize_and_crop(image, preprocess), timm_pixels(image, preprocess)
    )
    expected = timm_transform(preprocess)(image).numpy()
    actual = prepare_batch([image], preprocess)[0]
    assert actual.dtype == np.float32
    assert actual.flags.c_contiguous
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(
    ("size", "crop_pct"),
    [((224, 224), 0.875), ((384, 384), 1.0), ((224, 160), 0.9), ((96, 320), 0.95), ((35, 36), 1.0),
     ((30, 31), 1.4), ((31, 31), 1.5), ((28, 28), 0.9)],
)  # fmt: skip
@pytest.mark.parametrize("crop_mode", CROP_MODES)
def test_any_target_size_is_cut_as_timm_does(
    size: tuple[int, int], crop_pct: float, crop_mode: str
) -> None:
    """Square or not, squashed or cut, padded where the crop is larger."""
    preprocess = Preprocess(size=size, crop_pct=crop_pct, crop_mode=crop_mode)
    for shape in [(120, 97), (97, 120), (64, 64), (13, 90)]:
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
    """With `image.convert`, which leaves the image as it is."""
    image = Image.fromarray(noise(40, 50, 3)).convert(mode)
    before = image.tobytes()
    channels = 3 if color == "RGB" else 1
    half = (0.5,) * channels
    preprocess = Preprocess(size=(24, 24), color=color, mean=half, std=half)
    np.testing.assert_array_equal(
        resize_and_crop(image, preprocess), timm_pixels(image, preprocess)
    )
    assert (image.mode, image.size, image.tobytes()) == (mode, (50, 40), before)


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_channels_are_resized_independently(channels: int) -> None:
    """A fourth channel is not transparency, by which Pillow would multiply the others."""
    pixels = noise(40, 30, channels)
    half = (0.5,) * channels
    preprocess = Preprocess(size=(16, 16), color="", mean=half, std=half)
    grey = Preprocess(size=(16, 16), color="L", mean=(0.5,), std=(0.5,))
    expected = [timm_pixels(Image.fromarray(pixels[..., c]), grey) for c in range(channels)]
    np.testing.assert_array_equal(
        resize_and_crop(pixels, preprocess), np.concatenate(expected, axis=-1)
    )


def test_views_give_the_same_as_copies() -> None:
    """Flipped, strided and transposed."""
    view = noise(50, 40, 3)[::-1, ::2].transpose(1, 0, 2)
    np.testing.assert_array_equal(resize_and_crop(view, SMALL), resize_and_crop(view.copy(), SMALL))


def test_an_array_of_the_models_size_needs_no_pillow() -> None:
    """Other images are an error that says how to install Pillow."""
    script = """
import sys
sys.modules["PIL"] = None
import numpy as np
from vit_export.errors import ImageError
from vit_export.artifact.preprocess import Preprocess
from vit_export.images.prepare import prepare_batch
grey = Preprocess(size=(16, 16), crop_pct=1.0, color="L", mean=(0.5,), std=(0.5,))
rgb = Preprocess(size=(16, 16), crop_pct=1.0)
for preprocess in (grey, rgb):
    for shape in [(16, 16), (16, 16, 1), (16, 16, 3), (16, 16, 4)]:
        prepare_batch([np.zeros(shape, np.uint8)], preprocess)
for image in (np.zeros((9, 9, 3), np.uint8), "photo.jpg"):
    try:
        prepare_batch([image], rgb)
    except ImageError as error:
        assert "pip install pillow" in str(error)
    else:
        sys.exit("no error")
heavy = {"torch", "onnx", "timm", "torchvision", "onnxruntime"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_the_module_does_not_import_pillow() -> None:
    """A device whose images are arrays need not have it."""
    script = "import sys, vit_export.images.prepare; sys.exit('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_normalisation_gives_torchvisions_bits_for_every_value() -> None:
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
    """Values * std + mean give the pixels, for any batch."""
    pixels = noise(*shape, 3)
    values = normalize(pixels, Preprocess(size=(1, 1), mean=mean, std=std))
    assert values.shape == (shape[0], 3, *shape[1:])
    back = np.moveaxis(values, -3, -1).astype(np.float64) * std + mean
    np.testing.assert_array_equal(np.rint(back * 255).astype(np.uint8), pixels)


def test_images_of_a_batch_are_prepared_independently(tmp_path: Path) -> None:
    """Paths, Pillow images and arrays of different sizes together."""
    pixels = [noise(30, 20, 3, seed=1), noise(17, 40, 3, seed=2), noise(16, 16, 3, seed=3)]
    images = [saved(Image.fromarray(pixels[0]), tmp_path / "a.png"), Image.fromarray(pixels[1])]
    batch = prepare_batch([*images, pixels[2]], SMALL)
    assert batch.shape == (3, 3, 16, 16)
    for row, source in zip(batch, pixels, strict=True):
        np.testing.assert_array_equal(row, prepare_batch([source], SMALL)[0])
    four = noise(4, 20, 30, 3)
    np.testing.assert_array_equal(prepare_batch(four, SMALL), prepare_batch(list(four), SMALL))


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.zeros((8, 8, 3), np.float32), r"float32, expected uint8 \(H, W, C\)"),
        (np.zeros((8, 8), np.uint16), "uint16, expected uint8"),
        (np.zeros((0, 8, 3), np.uint8), r"\(0, 8, 3\).*at least one pixel"),
        (np.zeros((3, 8, 8), np.uint8), r"\(3, 8, 8\)(?s:.*)transpose\(1, 2, 0\)"),
        (np.zeros((8, 8, 2), np.uint8), "1, 3 or 4 channels"),
        (np.zeros((2, 8, 8, 3), np.uint8), "pass several images as a list"),
        (np.zeros(8, np.uint8), r"expected \(H, W, C\)"),
        (torch.zeros(8, 8, 3), r"torch\.Tensor, expected a path"),
        (b"\x89PNG", r"^4 bytes: is not an image"),
        (None, "NoneType"),
        ("nowhere.jpg", "nowhere.jpg: no such image"),
        ("nul\0byte.jpg", "cannot be read"),
    ],
)
def test_other_objects_than_images_are_refused(image: Any, reason: str) -> None:
    """The message says what was found and what was expected."""
    with pytest.raises(ImageError, match=reason):
        resize_and_crop(image, SMALL)


def test_a_very_elongated_image_is_refused() -> None:
    """1 x 200000 pixels would be resized to 248 x 49.6 million."""
    with pytest.raises(ImageError, match="too elongated"):
        resize_and_crop(np.zeros((1, 200_000, 3), np.uint8), Preprocess(size=(224, 224)))


def test_a_wrong_number_of_channels_is_refused() -> None:
    """A model with five channels takes arrays of five channels only."""
    five = Preprocess(size=(16, 16), color="", mean=(0.5,) * 5, std=(0.5,) * 5)
    assert resize_and_crop(noise(16, 16, 5), five).shape == (16, 16, 5)
    with pytest.raises(ImageError, match="4 channels was given, the model reads 5"):
        resize_and_crop(noise(16, 16, 4), five)
    with pytest.raises(ImageError, match="neither RGB nor grey"):
        resize_and_crop(Image.new("RGB", (16, 16)), five)


@pytest.mark.parametrize("images", [noise(16, 16, 3), "photo.jpg", Image.new("L", (4, 4)), []])
def test_one_image_is_not_taken_for_a_batch(images: Any) -> None:
    """Of its rows or letters."""
    with pytest.raises(ImageError, match=r"a batch was given as one|an empty batch"):
        prepare_batch(images, SMALL)


def test_an_unusable_image_in_a_batch_is_named() -> None:
    """By its number, since arrays have no name."""
    with pytest.raises(ImageError, match=r"^image 1: .*float64"):
        prepare_batch([noise(16, 16, 3), np.zeros((16, 16, 3))], SMALL)


def one_side_at_a_time(
    image: Image.Image, size: tuple[int, int], method: Image.Resampling, *, rows: bool
) -> Image.Image:
    """Resize to (width, height), rows or columns first."""
    middle = (image.width, size[1]) if rows else (size[0], image.height)
    return image.resize(middle, method).resize(size, method)


@given(
    given_hw=st.tuples(st.integers(2, 90), st.integers(2, 90)),
    wanted=st.tuples(st.integers(2, 90), st.integers(2, 90)),
)
@settings(max_examples=60, deadline=None)
def test_rows_come_first_where_pillow_13_does_them_first(
    given_hw: tuple[int, int], wanted: tuple[int, int]
) -> None:
    """The order shows where bicubic overshoots; other versions of Pillow are made to keep it."""
    image = Image.fromarray(noise(*given_hw, seed=1) // 128 * 255)
    (height, width), method = wanted, Image.Resampling.BICUBIC
    first = rows_first(given_hw, wanted)
    ours = one_side_at_a_time(image, (width, height), method, rows=first)
    if PILLOW >= (13,):
        assert ours.tobytes() == image.resize((width, height), method).tobytes()
    preprocess = Preprocess(
        size=wanted, crop_pct=1.0, crop_mode="squash", color="L", mean=(0.5,), std=(0.5,)
    )
    np.testing.assert_array_equal(resize_and_crop(image, preprocess)[:, :, 0], np.asarray(ours))


def test_a_whole_image_is_decoded_and_not_resized() -> None:
    image = Image.fromarray(noise(9, 30))
    pixels = whole_image(image, SMALL)
    assert pixels.shape == (9, 30, 3)
    with pytest.raises(ImageError, match="4 channels was given, the model reads 5"):
        whole_image(noise(9, 30, 4), Preprocess(size=(8, 8), mean=(0,) * 5, std=(1,) * 5, color=""))
    with pytest.raises(ImageError, match="too elongated"):
        whole_image(np.zeros((1, 10_000_000, 3), np.uint8), SMALL)

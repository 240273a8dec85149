"""Image preparation of the C++ library: the same bits as Python and Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
from c_interface import Library, StatusError
from numpy.typing import NDArray
from PIL import Image

from vit_export.artifact.preprocess import CROP_MODES, Preprocess
from vit_export.images.prepare import prepare_batch

pytestmark = pytest.mark.cpp
CMAKE_FOLDER = Path(__file__).parents[3] / "vit_export" / "deploy" / "cpp"
IN_MANIFESTS = ("nearest", "bilinear", "bicubic", "lanczos")
FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
SIZES = [  # height and width
    (1, 1), (1, 300), (300, 1), (2, 3), (31, 33), (32, 32), (36, 36), (37, 36), (64, 32), (32, 64),
    (47, 101), (101, 47), (224, 224), (225, 223), (249, 249), (250, 333), (427, 640), (640, 427),
    (500, 375), (511, 77), (77, 511), (240, 900), (1023, 767), (41, 40),
]  # fmt: skip


@pytest.fixture(scope="session")
def library(release: Path) -> Library:
    return Library(release / "library" / "libvit_export.so")


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def check(library: Library, images: Sequence[NDArray[np.uint8]], preprocess: Preprocess) -> None:
    prepared = library.prepare(images, preprocess)
    np.testing.assert_array_equal(prepared, prepare_batch(images, preprocess))


@pytest.mark.parametrize("crop_mode", CROP_MODES)
@pytest.mark.parametrize("interpolation", IN_MANIFESTS)
def test_images_of_every_size_are_prepared_to_the_bit(
    library: Library, interpolation: str, crop_mode: str
) -> None:
    images = [noise(*size, 3, seed=i) for i, size in enumerate(SIZES)]
    for size, crop_pct in (((32, 32), 0.9), ((64, 64), 1.0), ((48, 32), 0.875), ((30, 41), 1.3)):
        preprocess = Preprocess(
            size=size, crop_pct=crop_pct, interpolation=interpolation, crop_mode=crop_mode,
            mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
        )  # fmt: skip
        check(library, images, preprocess)


@pytest.mark.parametrize("interpolation", FILTERS)
def test_every_filter_of_pillow_gives_the_same_bits(library: Library, interpolation: str) -> None:
    """With mean 0 and std 1/255 the prepared values are the pixels."""
    unit = Preprocess(
        size=(1, 1), crop_pct=1.0, mean=(0.0,) * 3, std=(1.0,) * 3, crop_mode="squash"
    )
    method = Image.Resampling[interpolation.upper()]
    pairs = [((h, w), (w % 97 + 1, h % 89 + 1)) for h, w in SIZES] + [((3, 2), (300, 400))]
    for seed, (given, wanted) in enumerate(pairs):
        image = noise(*given, 3, seed=seed)
        how = Preprocess(
            size=wanted, crop_pct=1.0, mean=unit.mean, std=unit.std, crop_mode="squash"
        )
        (prepared,) = library.prepare([image], how, interpolation=interpolation)
        expected = np.asarray(Image.fromarray(image).resize(wanted[::-1], method))
        pixels = np.rint(prepared * 255).astype(np.uint8).transpose(1, 2, 0)
        np.testing.assert_array_equal(pixels, expected, err_msg=f"{given} to {wanted}")


def test_photographs_are_prepared_to_the_bit(library: Library) -> None:
    photographs = list(sklearn.datasets.load_sample_images().images)
    for interpolation in IN_MANIFESTS:
        check(library, photographs, Preprocess(size=(224, 224), interpolation=interpolation))
        check(library, photographs, Preprocess(size=(384, 384), interpolation=interpolation))


@pytest.mark.parametrize(("color", "channels"), [("RGB", 3), ("L", 1), ("", 2), ("", 5)])
def test_other_colours_are_converted_as_in_python(
    library: Library, color: str, channels: int
) -> None:
    given = (channels,) if not color else (1, 3, 4)
    images = [noise(40 + i, 57, count, seed=i) for i, count in enumerate(given)]
    preprocess = Preprocess(
        size=(24, 24), color=color, mean=(0.3,) * channels, std=(0.7,) * channels
    )
    check(library, images, preprocess)


def test_rows_may_have_gaps(library: Library) -> None:
    wide = noise(50, 90, 3)
    check(library, [wide[:, 10:70], wide[::2, :40]], Preprocess(size=(32, 32)))


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((40, 40, 2), "2 channels was given, expected 1, 3 or 4"),
        ((200_000, 1, 3), "too elongated"),
    ],
)
def test_images_that_cannot_be_prepared_are_errors(
    library: Library, shape: tuple[int, ...], words: str
) -> None:
    with pytest.raises(StatusError, match=words):
        library.prepare([noise(*shape)], Preprocess(size=(224, 224)))


def test_unknown_values_of_a_preparation_are_errors(library: Library) -> None:
    with pytest.raises(StatusError, match="interpolation='cubic': expected one of nearest, box"):
        library.prepare([noise(8, 8, 3)], Preprocess(size=(8, 8)), interpolation="cubic")

"""A graph prepares images as Pillow and numpy do, of any size, in every mode."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preparation_graphs import preparation_model, prepared_levels, session
from sklearn.datasets import load_sample_image

from vit_export.artifact.preprocess import Preprocess
from vit_export.errors import UsageError
from vit_export.images.prepare import normalize, resize_and_crop

FORMS = [
    ("op", "bilinear"), ("op", "bicubic"), ("op", "nearest"),
    ("matmul", "bilinear"), ("matmul", "bicubic"), ("matmul", "nearest"), ("matmul", "lanczos"),
]  # fmt: skip
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
MODES = {
    "center": Preprocess(size=(32, 32), crop_pct=0.9, **IMAGENET),
    "whole": Preprocess(size=(32, 32), crop_pct=1.0),
    "not square": Preprocess(size=(24, 40), crop_pct=0.875),
    "squash": Preprocess(size=(32, 24), crop_pct=0.9, crop_mode="squash"),
    "border": Preprocess(size=(32, 24), crop_pct=0.9, crop_mode="border", **IMAGENET),
    "whole in a border": Preprocess(size=(28, 28), crop_pct=1.0, crop_mode="border"),
    "grey": Preprocess(size=(28, 28), crop_pct=1.0, mean=(0.13,), std=(0.3,), color="L"),
    "four channels": Preprocess(size=(16, 16), mean=(0.5,) * 4, std=(0.5,) * 4, color=""),
}
PHOTOGRAPHS = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]


def variant(mode: str, interpolation: str) -> Preprocess:
    """The preparation of a mode with an interpolation."""
    return MODES[mode].replace({"interpolation": interpolation})


@functools.cache
def graph(mode: str, resize: str, interpolation: str) -> ort.InferenceSession:
    """A session, created once."""
    return session(preparation_model(variant(mode, interpolation), resize))


def differences(
    image: npt.NDArray[np.uint8], mode: str, resize: str, interpolation: str
) -> npt.NDArray[np.float64]:
    """Levels of 255 by which a graph's pixels differ from Pillow's."""
    preprocess = variant(mode, interpolation)
    found = prepared_levels(graph(mode, resize, interpolation), image[None], preprocess)[0]
    difference: npt.NDArray[np.float64] = np.abs(found - resize_and_crop(image, preprocess))
    return difference


sizes = st.integers(1, 150)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest", "lanczos"])
@given(height=sizes, width=sizes, seed=st.integers(0, 2**32 - 1))
@settings(max_examples=12, deadline=None)
def test_matrix_products_give_the_pixels_of_pillow(
    mode: str, interpolation: str, height: int, width: int, seed: int
) -> None:
    """To the bit, even of noise, which meets every rounding and every overshoot."""
    channels = 4 if mode == "four channels" else 3
    image = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    assert differences(image, mode, "matmul", interpolation).max() < 1e-3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@given(height=sizes, width=sizes, seed=st.integers(0, 2**32 - 1))
@settings(max_examples=12, deadline=None)
def test_resize_nodes_are_within_one_level_of_pillow(
    mode: str, interpolation: str, height: int, width: int, seed: int
) -> None:
    """Of noise, bicubic may turn one level after the first pass into two after the second."""
    channels = 4 if mode == "four channels" else 3
    image = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    difference = differences(image, mode, "op", interpolation)
    assert difference.max() < (2.001 if interpolation == "bicubic" else 1.001)
    assert (difference > 1.001).mean() < 5e-3


@pytest.mark.parametrize(("resize", "interpolation"), FORMS)
@given(
    photo=st.sampled_from(range(2)),
    top=st.integers(0, 426),
    left=st.integers(0, 639),
    height=st.integers(1, 427),
    width=st.integers(1, 640),
)
@settings(max_examples=12, deadline=None)
def test_parts_of_photographs_are_within_one_level_of_pillow(
    resize: str, interpolation: str, photo: int, top: int, left: int, height: int, width: int
) -> None:
    image = np.ascontiguousarray(PHOTOGRAPHS[photo][top : top + height, left : left + width])
    assert differences(image, "center", resize, interpolation).max() < 1.001


@pytest.mark.parametrize("resize", ["op", "matmul"])
def test_a_model_of_224_px_prepares_whole_photographs(resize: str) -> None:
    preprocess = Preprocess(size=(224, 224), crop_pct=0.9, interpolation="bicubic")
    model = session(preparation_model(preprocess, resize))
    images = np.stack(PHOTOGRAPHS)
    found = prepared_levels(model, images, preprocess)
    wanted = np.stack([resize_and_crop(image, preprocess) for image in images])
    assert np.abs(found - wanted).max() < (1.001 if resize == "op" else 1e-3)
    assert (np.abs(found - wanted) > 0.5).mean() < 1e-3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("resize", ["op", "matmul"])
def test_an_image_of_the_size_before_the_crop_is_normalised_to_the_bit(
    mode: str, resize: str
) -> None:
    preprocess = MODES[mode]
    rows, columns = (int(side / preprocess.crop_pct) for side in preprocess.size)
    channels = 4 if mode == "four channels" else 3
    image = np.random.default_rng(0).integers(0, 256, (rows, columns, channels), dtype=np.uint8)
    (found,) = graph(mode, resize, preprocess.interpolation).run(None, {"image": image[None]})
    np.testing.assert_array_equal(
        found, normalize(resize_and_crop(image, preprocess), preprocess)[None]
    )


@pytest.mark.parametrize("opset", [18, 19, 20, 23])
@pytest.mark.parametrize(("resize", "interpolation"), FORMS)
@pytest.mark.parametrize("mode", ["center", "not square", "border", "grey"])
def test_onnx_accepts_the_graph(mode: str, resize: str, interpolation: str, opset: int) -> None:
    """Checked with strict shape inference, which knows the size that the model takes."""
    model = preparation_model(variant(mode, interpolation), resize, opset=opset)
    onnx.checker.check_model(model, full_check=True)
    assert model.ByteSize() < 40_000


def test_the_graph_is_the_same_each_time() -> None:
    first, second = (preparation_model(MODES["center"], "matmul") for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(
        deterministic=True
    )


def test_lanczos_needs_matrix_products() -> None:
    with pytest.raises(UsageError, match="no lanczos") as caught:
        preparation_model(variant("center", "lanczos"), "op")
    assert "--resize matmul" in caught.value.hint


def test_a_crop_wider_than_the_image_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--crop-pct 1\.2: expected at most 1"):
        preparation_model(Preprocess(size=(32, 32), crop_pct=1.2), "op")


def test_an_unknown_form_of_resize_gets_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="matmul"):
        preparation_model(MODES["center"], "matmull")

"""Calibration: the artifact's own image preparation, an even choice of images, one session."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
from PIL import Image

from vit_export.artifact.golden import Golden
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.errors import DataError, GateError, UsageError
from vit_export.graph.int8.select import planned_layers, planned_tensors
from vit_export.graph.int8.static import to_int8_static
from vit_export.graph.layers import converted_nodes
from vit_export.images.prepare import prepare_batch
from vit_export.quantization import calibration
from vit_export.quantization.calibration import Calibrator
from vit_export.runtime.onnxruntime import runner as ort_runner
from vit_export.runtime.onnxruntime.runner import OrtRunner


@pytest.fixture(scope="module")
def golden(tiny_export) -> Golden:
    """Golden file of the tiny artifact."""
    return Golden.read(tiny_export.golden)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eleven small pictures of noise."""
    folder = tmp_path_factory.mktemp("noise")
    pixels = np.random.default_rng(0).integers(0, 256, (11, 32, 32, 3), np.uint8)
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture
def calibrator(tiny_export, golden, folder) -> Calibrator:
    """Calibrates with the pictures of noise."""
    return Calibrator(golden, tiny_export.manifest.preprocess, folder)


def test_ranges_are_those_of_all_images_at_once(tiny_export, calibrator, folder):
    """Whatever the batches are, and prepared as the manifest says."""
    names = planned_tensors(tiny_export.path)
    ranges = calibrator.ranges(tiny_export.path, names)
    x = prepare_batch(sorted(folder.iterdir()), tiny_export.manifest.preprocess)
    whole = OrtRunner(tiny_export.path, provider="cpu").expose(names).run({"pixel_values": x})
    assert (list(ranges.tensors), ranges.images) == (names, 11)
    for name in names:
        absmax = np.abs(whole[name]).reshape(-1, whole[name].shape[-1]).max(axis=0)
        np.testing.assert_allclose(ranges.tensors[name].channels, absmax, rtol=1e-4, atol=1e-6)
        assert ranges.tensors[name].counts.sum() == whole[name].size
    assert calibrator.description == f"11 of 11 images of {folder.name}"
    assert calibrator.warnings == ()


def test_at_most_so_many_images_are_used_spread_evenly(tiny_export, golden, folder, monkeypatch):
    """The first and the last among them; progress counts them."""
    steps = []
    monkeypatch.setattr(calibration, "MAX_IMAGES", 3)
    monkeypatch.setattr(calibration, "BATCH", 2)
    calibrator = Calibrator(
        golden, tiny_export.manifest.preprocess, folder, progress=lambda *a: steps.append(a)
    )
    prepared = []
    real = calibration.prepare_batch

    def prepare(images, preprocess):
        prepared.append([path.name for path in images])
        return real(images, preprocess)

    monkeypatch.setattr(calibration, "prepare_batch", prepare)
    assert calibrator.ranges(tiny_export.path, ["features"]).images == 3
    assert prepared == [["00.png", "05.png"], ["10.png"]]
    assert steps == [("calibrate", done, 3) for done in (0, 2, 3)]
    assert calibrator.description == f"3 of 11 images of {folder.name}"


def test_the_weights_are_in_memory_once(tiny_export, calibrator, monkeypatch):
    """One session at a time."""
    alive, most = weakref.WeakSet(), []
    real = ort_runner.create_session

    def create(*arguments, **options):
        opened = real(*arguments, **options)
        alive.add(opened[0])
        most.append(len(alive))
        return opened

    monkeypatch.setattr(ort_runner, "create_session", create)
    calibrator.ranges(tiny_export.path, ["features"])
    assert most == [1]
    assert not alive


def test_without_images_the_golden_ones_are_used(tiny_export, golden):
    """As SmoothQuant and recipe `all` may."""
    calibrator = Calibrator(golden, tiny_export.manifest.preprocess)
    assert calibrator.ranges(tiny_export.path, ["features"]).images == golden.samples
    assert calibrator.description == f"the {golden.samples} golden images"


def test_images_of_one_colour_are_a_warning(tiny_export, golden, tmp_path, photographs):
    """A black picture shows no range."""
    Image.new("RGB", (40, 40)).save(tmp_path / "black.png")
    Image.new("RGB", (40, 40), (9, 200, 30)).save(tmp_path / "green.png")
    with Image.open(photographs[0]) as picture:
        picture.resize((40, 40)).save(tmp_path / "china.png")
    calibrator = Calibrator(golden, tiny_export.manifest.preprocess, tmp_path)
    calibrator.ranges(tiny_export.path, ["features"])
    (warning,) = calibrator.warnings
    assert warning.startswith("2 of 3 calibration images have one colour only")


def test_every_method_gives_ranges_for_a_static_artifact(tiny_export, calibrator, tmp_path):
    """Percentile, entropy and max; here of the head alone."""
    ranges = calibrator.ranges(tiny_export.path, ["features"])
    keep = [layer for layer in planned_layers(tiny_export.path) if layer != "head"]
    for method in ("percentile", "entropy", "max"):
        path = tmp_path / f"{method}.onnx"
        thresholds = {"features": ranges.tensors["features"].threshold(method)}
        to_int8_static(tiny_export.path, path, thresholds=thresholds, keep=keep)
        assert converted_nodes(OnnxFile.read(path)) == 1


def test_a_calibration_without_usable_images_is_refused(tiny_export, golden, tmp_path):
    """An empty folder, and a model that takes no images."""
    with pytest.raises(DataError):
        Calibrator(golden, tiny_export.manifest.preprocess, tmp_path)
    with pytest.raises(UsageError, match="--calibration needs a model of images"):
        Calibrator(golden, None, tmp_path)


def test_a_tensor_that_is_not_finite_has_no_range(tiny_export, calibrator, monkeypatch):
    """An overflow in the model; the session is freed all the same."""
    released = []
    nan = {"features": np.full((8, 3), np.nan, np.float32)}
    monkeypatch.setattr(calibration, "run_filled", lambda *_: nan)
    monkeypatch.setattr(OrtRunner, "release", lambda self: released.append(self))
    with pytest.raises(GateError, match="'features' is not finite"):
        calibrator.ranges(tiny_export.path, ["features"])
    assert len(released) == 1

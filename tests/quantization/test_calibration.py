"""Calibration: the artifact's own preparation, a fixed choice of images, one pass."""

from __future__ import annotations

import numpy as np
import pytest

from vit_export.artifact.manifest import Preprocess
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.errors import DataError, GateError
from vit_export.graph.int8.dynamic import quantised_nodes
from vit_export.graph.int8.select import planned_tensors
from vit_export.graph.int8.static import to_int8_static
from vit_export.images.prepare import prepare_batch
from vit_export.quantization.calibration import calibrate, calibration_batches, chosen_images
from vit_export.runtime.onnxruntime.runner import OrtRunner

IMAGES = np.random.default_rng(0).integers(0, 256, (11, 32, 32, 3), np.uint8)
PREPROCESS = Preprocess(size=(32, 32), crop_pct=1.0)


@pytest.fixture(scope="module")
def runner(tiny_export) -> OrtRunner:
    """The fp32 artifact."""
    return OrtRunner(tiny_export.path, provider="cpu")


@pytest.fixture(scope="module")
def watched(tiny_export) -> list[str]:
    """Tensors that products read."""
    return planned_tensors(tiny_export.path)


def test_ranges_are_those_of_all_images_at_once(runner, watched):
    """Whatever the batches; every tensor that was asked for."""
    batches = calibration_batches(IMAGES, PREPROCESS, batch=4)
    found = calibrate(runner, batches, watched)
    x = prepare_batch(IMAGES, PREPROCESS)
    whole = runner.expose(watched).run({"pixel_values": x})
    assert (list(found.tensors), found.images) == (watched, 11)
    for name in watched:
        reach = np.abs(whole[name]).reshape(-1, whole[name].shape[-1]).max(axis=0)
        np.testing.assert_allclose(found.channel_absmax[name], reach, rtol=1e-4, atol=1e-6)
        assert found.tensors[name].counts.sum() == whole[name].size


def test_progress_counts_images(runner, watched):
    """From none to all."""
    told = []
    batches = calibration_batches(IMAGES, PREPROCESS, batch=4)
    calibrate(runner, batches, watched[:1], total=11, progress=lambda *a: told.append(a))
    assert told == [("calibrating", done, 11) for done in (0, 4, 8, 11)]


def test_only_one_batch_is_prepared_at_a_time(runner, watched):
    """A folder of any size takes the memory of one batch."""
    started = []

    def batches():
        for i in range(3):
            started.append(i)
            yield {"pixel_values": prepare_batch(IMAGES[i : i + 1], PREPROCESS)}

    progress = []
    calibrate(runner, batches(), watched[:1],
              progress=lambda *_: progress.append(len(started)))  # fmt: skip
    assert progress == [0, 1, 2, 3]


def test_photographs_are_prepared_as_the_manifest_says(tiny_export, photographs):
    """The same pixels as a classifier's."""
    preprocess = tiny_export.manifest.preprocess
    (batch,) = calibration_batches(photographs, preprocess)
    assert np.array_equal(batch["pixel_values"], prepare_batch(photographs, preprocess))


def test_the_choice_is_even_and_always_the_same():
    """First and last among them; all where there are few."""
    assert chosen_images(1000, 5).tolist() == [0, 250, 500, 749, 999]
    assert chosen_images(3, 5).tolist() == [0, 1, 2]
    assert len(chosen_images(129, 128)) == 128


def test_batches_are_full_where_the_artifact_takes_no_other():
    """The last is filled from the first images."""
    sizes = [len(b["pixel_values"]) for b in calibration_batches(IMAGES, PREPROCESS, batch=4)]
    assert sizes == [4, 4, 3]
    full = [b["pixel_values"] for b in calibration_batches(IMAGES, PREPROCESS, batch=4,
                                                           fixed=True)]  # fmt: skip
    assert [len(batch) for batch in full] == [4, 4, 4]
    assert np.array_equal(full[2][3], full[0][0])


def test_the_ranges_make_a_static_artifact(tiny_export, runner, watched, tmp_path):
    """By either method, of real photographs' size of numbers."""
    found = calibrate(runner, calibration_batches(IMAGES, PREPROCESS), watched)
    for method in ("percentile", "entropy", "max"):
        path = tmp_path / f"{method}.onnx"
        to_int8_static(tiny_export.path, path, thresholds=found.thresholds(method))
        assert quantised_nodes(OnnxFile.read(path)) == 13


def test_no_image_is_no_calibration(runner, watched):
    """Neither none given nor none taken."""
    with pytest.raises(DataError, match="no image was given"):
        calibrate(runner, [], watched)
    for images, most in ((IMAGES[:0], 8), (IMAGES, 0)):
        with pytest.raises(DataError, match="at least one of each"):
            next(calibration_batches(images, PREPROCESS, most=most))


def test_a_tensor_that_is_not_finite_has_no_range(runner, watched):
    """An overflow in the model, not in the images."""

    class Broken:
        """A runner whose tensors are NaN."""

        path = runner.path
        released = 0

        def expose(self, names):
            self.names = names
            return self

        def run(self, feeds):
            return {name: np.full((1, 3), np.nan, np.float32) for name in self.names}

        def release(self):
            self.released += 1

    broken = Broken()
    with pytest.raises(GateError, match=r"'blocks\.0\.norm1.*not finite"):
        calibrate(broken, calibration_batches(IMAGES, PREPROCESS), watched)
    assert broken.released == 1

"""20 images through `classify`: batches are cut and filled up to what each runner accepts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeCuda

from vit_export.artifact.engine_sidecar import Range, Sidecar
from vit_export.artifact.manifest import TensorSpec
from vit_export.artifact.preprocess import Preprocess
from vit_export.images.prepare import prepare_batch
from vit_export.pipeline.settings import ExportSettings
from vit_export.runtime import TensorrtOptions, load, load_engine
from vit_export.runtime.model import Model

IMAGES = [np.full((32, 32, 3), 10 * i, np.uint8) for i in range(20)]
SIZES = (
    ("profile", "batches"),
    [
        ((1, 4, 8), [8, 8, 4]),
        ((8, 8, 8), [8, 8, 8]),
        ((1, 1, 1), [1] * 20),
        ((64, 64, 64), [64]),
        ((1, 8, 32), [20]),
    ],
)


@pytest.fixture(scope="module")
def expected(tiny_export: Any) -> np.ndarray:
    """Scores of every class, one image at a time."""
    model = load(tiny_export.path, provider="cpu")
    return np.concatenate([scores(model, [image]) for image in IMAGES])


def scores(model: Model, images: list[np.ndarray]) -> np.ndarray:
    """Scores by class number."""
    found = model.classify(images, top=10)
    return np.array([[p.score for p in sorted(row, key=lambda p: p.index)] for row in found])


@pytest.mark.parametrize(*SIZES)
def test_of_a_profile_of_onnx_runtimes_tensorrt_provider(
    tiny_export: Any, expected: np.ndarray, profile: tuple[int, int, int], batches: list[int]
) -> None:
    """A session on the CPU stands in for the provider; the check of the profile is the real one."""
    model = load(tiny_export.path, provider="cpu")
    runner: Any = model.runner
    runner.provider, runner.profile = "tensorrt", TensorrtOptions(profile=profile).profile
    ran, run = [], runner.run

    def record(feeds: dict[str, np.ndarray]) -> Any:
        ran.append(len(feeds["pixel_values"]))
        return run(feeds)

    runner.run = record
    np.testing.assert_allclose(scores(model, IMAGES), expected, atol=1e-6)
    assert ran == batches


@pytest.mark.parametrize("batch", [1, 8])
def test_of_an_onnx_file_of_a_fixed_batch(
    exported: Callable[..., Any], expected: np.ndarray, batch: int
) -> None:
    """With the real onnxruntime, which refuses any other batch."""
    model = load(exported(settings=ExportSettings(batch=batch)).path, provider="cpu")
    assert model.runner.inputs[0].fixed_batch == batch
    np.testing.assert_allclose(scores(model, IMAGES), expected, atol=1e-6)


def of_profile(sidecar: Sidecar, profile: tuple[int, int, int]) -> dict[str, Any]:
    """Fields of the sidecar of an engine with a profile."""
    return {"profiles": ({"pixel_values": Range(*((n, 3, 32, 32) for n in profile))},)}


def of_fixed_batch(sidecar: Sidecar, profile: tuple[int, int, int]) -> dict[str, Any]:
    """Fields of the sidecar of an engine without profiles, for the largest batch of one."""
    old = sidecar.manifest
    inputs, outputs = (
        tuple(TensorSpec(s.name, s.dtype, (profile[2], *s.shape[1:])) for s in specs)
        for specs in (old.inputs, old.outputs)
    )
    return {"profiles": (), "manifest": old.replace(inputs=inputs, outputs=outputs)}


@pytest.mark.parametrize(*SIZES)
@pytest.mark.parametrize("fields", [of_profile, of_fixed_batch])
def test_of_a_profile_or_a_fixed_batch_of_an_engine(
    make_engine: Callable[..., Path],
    make_sidecar: Callable[..., Sidecar],
    cuda: FakeCuda,
    fields: Callable[..., dict[str, Any]],
    profile: tuple[int, int, int],
    batches: list[int],
) -> None:
    """On a fake CUDA; the largest logit of the fake engine is the sum of the pixels, plus 9."""
    path, preprocess = make_engine(**fields(make_sidecar(), profile)), Preprocess(size=(32, 32))
    with load_engine(path, trusted=True, preprocess=preprocess) as model:
        model.activation = "none"
        model.runner._graphs_off.set()  # replays would not be counted
        found = [row[0].score for row in model.classify(IMAGES)]
    sums = prepare_batch(IMAGES, preprocess).reshape(len(IMAGES), -1).sum(axis=1)
    np.testing.assert_allclose(found, sums + 9, rtol=1e-4)
    if fields is of_profile:
        assert cuda.batches == batches
    else:
        assert cuda.batches == [profile[2]] * -(-len(IMAGES) // profile[2])


def test_images_for_an_engine_of_a_large_smallest_batch_run_together(
    make_engine: Callable[..., Path], make_sidecar: Callable[..., Sidecar], cuda: FakeCuda
) -> None:
    """40 images are one batch of 64, and not two of 32 that are each padded to 64."""
    path = make_engine(**of_profile(make_sidecar(), (64, 64, 64)))
    with load_engine(path, trusted=True, preprocess=Preprocess(size=(32, 32))) as model:
        assert len(model.classify(IMAGES * 2)) == 40
    assert cuda.batches == [64]

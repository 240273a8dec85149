"""CUDA graphs of an engine, on a fake CUDA: no machine of the tests has a GPU.

How a capture fails is taken from the source of cuda-core's `GraphBuilder`.
"""

from __future__ import annotations

import gc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cuda import OnGpu

from vit_export.errors import ProviderWarning
from vit_export.runtime.tensorrt.runner import TrtRunner

X = np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32)
LOGITS = X.reshape(8, -1).sum(axis=1, keepdims=True) + np.arange(10, dtype=np.float32)


def kinds(cuda: Any) -> list[str]:
    """What is allocated."""
    return [kind for kind, _ in cuda.allocated.values()]


def test_the_second_run_of_a_batch_is_captured_without_garbage_collection(
    trt_runner: TrtRunner, cuda: Any
) -> None:
    """The fake context checks the collector, and the fake builder the mode, which is trtexec's."""
    trt_runner.run({"pixel_values": X})
    assert "graph" not in kinds(cuda)
    trt_runner.run({"pixel_values": X})
    assert kinds(cuda).count("graph") == 1
    assert gc.isenabled()
    trt_runner.run({"pixel_values": X})
    assert len(cuda.runs) == 2  # the third was a replay


@pytest.mark.parametrize(
    ("stage", "reason"),
    [
        ("begin", "CUDA_ERROR_ILLEGAL_STATE: begin"),
        ("run", "TensorRT gave no reason"),
        ("end", "Build process must now be ended"),
        ("complete", "CUDA_ERROR_OUT_OF_MEMORY: complete"),
    ],
)
def test_after_a_failed_capture_the_engine_runs_without_graphs(
    engine_path: Path, cuda: Any, stage: str, reason: str
) -> None:
    """One warning for all batch sizes, every result is right, and the stream captures no more."""
    cuda.capture_fails = stage
    runner = TrtRunner(engine_path)
    runner.run({"pixel_values": X})
    with pytest.warns(ProviderWarning, match=f"without CUDA graphs.*{reason}") as caught:
        found = runner.run({"pixel_values": X})["logits"]
    assert len(caught) == 1
    np.testing.assert_allclose(found, LOGITS, rtol=1e-5)
    assert cuda.captures == {}
    assert gc.isenabled()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in (8, 8, 2, 2, 2):
            found = runner.run({"pixel_values": X[:batch]})["logits"]
            np.testing.assert_allclose(found, LOGITS[:batch], rtol=1e-5)
            out = np.zeros((batch, 10), np.float32)
            runner.run_on_device({"pixel_values": OnGpu(X[:batch])}, out={"logits": OnGpu(out)})
            np.testing.assert_allclose(out, LOGITS[:batch], rtol=1e-5)
    assert "graph" not in kinds(cuda)


def test_garbage_collection_that_was_off_stays_off(trt_runner: TrtRunner) -> None:
    gc.disable()
    try:
        for _ in range(2):
            trt_runner.run({"pixel_values": X})
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_graphs_are_captured_again_for_larger_buffers(trt_runner: TrtRunner, cuda: Any) -> None:
    """Those of the smaller buffers are dropped, whose addresses they contain."""
    for batch in (2, 2, 8, 8, 2, 2, 2):
        found = trt_runner.run({"pixel_values": X[:batch]})["logits"]
        np.testing.assert_allclose(found, LOGITS[:batch], rtol=1e-5)
    assert kinds(cuda).count("graph") == 2

"""The worker that loads and times a candidate."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vit_export.artifact.golden import Golden, golden_path
from vit_export.artifact.manifest import Manifest, TensorSpec
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.vocabulary import IMAGE
from vit_export.benchmark import worker
from vit_export.benchmark.worker import Stopwatch, load_artifact, peak_rss_bytes, random_feeds
from vit_export.errors import ArtifactError
from vit_export.runtime import load


@dataclass
class Recorded:
    """A model that records its inputs."""

    inputs: tuple[TensorSpec, ...]
    manifest: Manifest | None = None
    path: Path = Path("recorded.onnx")
    provider: str = "cpu"

    def __post_init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def run(self, feeds):
        """Return one class per image, without computing."""
        self.seen.append(feeds)
        return {"logits": np.zeros((len(next(iter(feeds.values()))), 1), np.float32)}


def test_inputs_have_the_dtype_and_shape_that_the_model_takes():
    """For float16 and for bytes too."""
    model = Recorded((TensorSpec("x", "float16", ("n", 3, 8, 4)), TensorSpec("m", "uint8", ("n",))))
    feeds = random_feeds(model, 5)
    assert {name: (x.dtype.name, x.shape) for name, x in feeds.items()} == {
        "x": ("float16", (5, 3, 8, 4)), "m": ("uint8", (5,)),
    }  # fmt: skip


def test_a_dynamic_size_comes_from_the_manifest_or_is_an_error(tiny_export):
    """Height and width only; any other dynamic dimension is unknown."""
    dynamic = (TensorSpec("x", "float32", ("n", 3, "height", "width")),)
    known = Recorded(dynamic, manifest=tiny_export.manifest)
    assert random_feeds(known, 2)["x"].shape == (2, 3, 32, 32)
    with pytest.raises(ArtifactError, match="the size of 'height'"):
        random_feeds(Recorded(dynamic), 2)


def test_a_model_with_a_fixed_batch_is_loaded_with_it_and_timed_at_no_other():
    """A wrong batch size is an error of that size alone."""
    model = Recorded((TensorSpec("x", "float32", (4, 2)),))
    stopwatch = Stopwatch(lambda: model)
    stopwatch.load(batch=1)
    assert [len(feeds["x"]) for feeds in model.seen] == [4]
    with pytest.raises(ArtifactError, match="takes batches of 4 only"):
        stopwatch.time(batch=1, seconds=0)


def test_an_engine_is_loaded_without_its_golden_check(monkeypatch):
    """Its load time is not that of the check; other files have no such option."""
    model = Recorded(())
    calls = []

    def record(function):
        return lambda path, **options: (
            calls.append((function, path, options)) or SimpleNamespace(runner=model)
        )

    for function in ("load", "load_engine"):
        monkeypatch.setattr(f"vit_export.benchmark.worker.{function}", record(function))
    both = {"provider": "auto", "device": 1}
    onnx = {"path": "x.onnx", **both, "threads": 2, "allow_host_code": False}
    engine = {"path": "x.engine", **both, "threads": None, "allow_host_code": True}
    assert load_artifact(**onnx) is load_artifact(**engine) is model
    assert calls == [
        ("load", "x.onnx", {**both, "threads": 2}),
        ("load_engine", "x.engine", {**both, "trusted": True, "allow_host_code": True}),
    ]  # fmt: skip


def test_providers_that_auto_rejected_are_notes():
    """The warning itself would stay in the child's log."""
    model = Recorded((TensorSpec("x", "float32", ("n", 2)),))
    assert Stopwatch(lambda: model).load(batch=1)["notes"] == []
    model.rejected = {"cuda": "no GPU"}
    assert Stopwatch(lambda: model).load(batch=1)["notes"] == ["not cuda: no GPU"]


def test_the_time_of_a_graph_that_prepares_images_says_so(tiny_export):
    """Beside a graph that gets them prepared, it looks slow."""
    whole = TensorSpec(IMAGE, "uint8", ("batch", "height", "width", 3))
    model = Recorded((whole,))
    model.manifest = OnnxFile.read(tiny_export.path).manifest.replace(inputs=(whole,))
    notes = Stopwatch(lambda: model).load(batch=1)["notes"]
    assert notes == ["each run also prepares images of 640 x 480"]


def test_the_first_run_of_a_turn_is_not_counted():
    """Other candidates have filled the caches before it."""
    model = Recorded((TensorSpec("x", "float32", ("n", 2)),))
    stopwatch = Stopwatch(lambda: model)
    stopwatch.load(batch=3)
    model.seen.clear()
    seconds = stopwatch.time(batch=3, seconds=0.01)["seconds"]
    assert all(second > 0 for second in seconds)
    assert len(model.seen) == len(seconds) + 1


def test_a_turn_lasts_a_time_and_not_a_number_of_runs():
    """One long run, or many short ones."""
    model = Recorded((TensorSpec("x", "float32", ("n", 2)),))
    stopwatch = Stopwatch(lambda: model)
    stopwatch.load(batch=3)
    started = time.perf_counter()
    assert len(stopwatch.time(batch=3, seconds=0.05)["seconds"]) > 1
    assert time.perf_counter() - started >= 0.05
    assert len(stopwatch.time(batch=3, seconds=0)["seconds"]) == 1


@pytest.mark.parametrize("batch", [1, 3, 20])
def test_the_distance_is_measured_over_all_golden_samples(tiny_export, batch):
    """In batches of any size."""
    stopwatch = Stopwatch(lambda: load(tiny_export.path, provider="cpu").runner)
    stopwatch.load(batch=batch)
    found = stopwatch.distance(golden=str(golden_path(tiny_export.path)), batch=batch)
    assert found["max_abs"] == pytest.approx(tiny_export.comparison.stage.max_abs, rel=0.5)
    assert found["tolerance"] == tiny_export.comparison.stage.tolerance
    assert found["accepted"] is True


def test_a_golden_file_of_another_model_is_an_error(tiny_export, tmp_path):
    """Its outputs have other names."""
    golden = Golden.read(tiny_export.golden)
    other = Golden(
        images=golden.images, outputs={"depth": golden.outputs["logits"]}, e32={"depth": 1e-6}
    )
    other.write(tmp_path / "other.npz")
    stopwatch = Stopwatch(lambda: load(tiny_export.path, provider="cpu").runner)
    stopwatch.load(batch=1)
    with pytest.raises(ArtifactError, match="belongs to another model"):
        stopwatch.distance(golden=str(tmp_path / "other.npz"), batch=1)


def test_samples_are_run_in_batches_of_the_size_that_is_timed(tiny_export):
    """The last batch is filled up: the rows of dynamic INT8 depend on each other."""
    runner = load(tiny_export.path, provider="cpu").runner
    stopwatch = Stopwatch(lambda: runner)
    stopwatch.load(batch=1)
    sizes = []
    run = runner.run
    runner.run = lambda feeds: sizes.append(len(feeds["pixel_values"])) or run(feeds)
    for batch in (3, 20):  # of 4 samples
        stopwatch.distance(golden=str(golden_path(tiny_export.path)), batch=batch)
    assert sizes == [3, 3, 20]


def test_peak_memory_is_unknown_where_the_system_does_not_report_it(monkeypatch):
    """Windows has neither /proc nor the module resource; the worker can still be imported."""
    monkeypatch.setattr(worker, "STATUS", Path("/none"))
    monkeypatch.setattr(worker, "resource", None)
    assert peak_rss_bytes() is None
    code = "import sys; sys.modules['resource'] = None; import vit_export.benchmark.worker"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_peak_memory_is_that_of_this_process_alone():
    """It grows with an array, and a child does not start at its parent's peak."""
    before = peak_rss_bytes()
    ballast = np.ones(300_000_000, np.uint8)
    assert peak_rss_bytes() >= max(before, 300_000_000)
    code = "from vit_export.benchmark.worker import peak_rss_bytes; print(peak_rss_bytes())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert int(child.stdout) < len(ballast) / 2

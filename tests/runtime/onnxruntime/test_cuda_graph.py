"""Runs from fixed buffers; recording itself needs a GPU and is tested by scripts/verify_gpu."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest

from vit_export.runtime.onnxruntime import cuda_graph
from vit_export.runtime.onnxruntime.cuda_graph import RecordedRuns

X = np.random.default_rng(0).standard_normal((5, 3, 32, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def session(tiny_export) -> onnxruntime.InferenceSession:
    """The tiny export in a session of its own."""
    return onnxruntime.InferenceSession(tiny_export.path, providers=["CPUExecutionProvider"])


@pytest.fixture
def runs(session) -> RecordedRuns:
    """Nothing recorded yet."""
    return RecordedRuns(session, ["logits"], ("cpu", 0))


def test_every_run_computes_its_own_input(session, runs):
    """Also the second of a batch size, which uses the same buffer."""
    for batch in (X[:2], X[2:4], X[:1], X[3:5], X[4:]):
        (expected,) = session.run(["logits"], {"pixel_values": batch})
        found = runs.run({"pixel_values": batch})
        np.testing.assert_array_equal(found["logits"], expected)


def test_each_batch_size_is_recorded_once(runs):
    """Three sizes, three recordings."""
    for size in (1, 2, 1, 3, 2, 1):
        runs.run({"pixel_values": X[:size]})
    assert len(runs._recorded) == 3


def test_buffers_keep_their_addresses(runs):
    """A recorded graph reads and writes them."""

    def addresses() -> list[int]:
        (recorded,) = runs._recorded.values()
        return [v.data_ptr() for v in (*recorded.inputs.values(), *recorded.outputs.values())]

    runs.run({"pixel_values": X[:2]})
    before = addresses()
    runs.run({"pixel_values": X[2:4]})
    assert addresses() == before


def test_the_callers_array_is_not_changed(runs):
    """The buffer is another one."""
    mine = X[:1].copy()
    runs.run({"pixel_values": mine})
    runs.run({"pixel_values": X[1:2]})
    np.testing.assert_array_equal(mine, X[:1])


def test_results_are_not_overwritten_by_the_next_run(runs):
    """They are copies."""
    first = runs.run({"pixel_values": X[:1]})["logits"]
    kept = first.copy()
    runs.run({"pixel_values": X[1:2]})
    np.testing.assert_array_equal(first, kept)


class Watched:
    """A session that notes the threads, the graphs of its runs, and those that were released."""

    def __init__(self, session: onnxruntime.InferenceSession, *, releases: bool = True) -> None:
        self.session, self.io_binding = session, session.io_binding
        self.threads: set[int] = set()
        self.graphs: list[int] = []
        self.released: list[int] = []
        if releases:
            self.release_captured_graph = self.release

    def run_with_iobinding(self, binding: object, options: onnxruntime.RunOptions) -> None:
        """Run, and note the thread and the graph."""
        self.threads.add(threading.get_ident())
        self.graphs.append(int(options.get_run_config_entry("gpu_graph_id")))
        self.session.run_with_iobinding(binding, options)

    def release(self, graph: int) -> None:
        """Note the graph, and the thread as well."""
        self.threads.add(threading.get_ident())
        self.released.append(graph)


def test_every_graph_has_a_number_of_its_own(session):
    """Otherwise ONNX Runtime would replay the graph of another batch size."""
    watched = Watched(session)
    runs = RecordedRuns(watched, ["logits"], ("cpu", 0))
    for size in (1, 2, 3, 2):
        runs.run({"pixel_values": X[:size]})
    assert watched.graphs == [-1, 0, -1, 1, -1, 2, 1]  # the first run of a size is not recorded


def test_the_least_recently_used_graph_is_released_at_the_limit(session, monkeypatch):
    """A server meets any number of batch sizes, and each graph keeps buffers on the GPU."""
    monkeypatch.setattr(cuda_graph, "MAX_GRAPHS", 2)
    watched = Watched(session)
    runs = RecordedRuns(watched, ["logits"], ("cpu", 0))
    for size in (1, 2, 1, 3, 4):
        runs.run({"pixel_values": X[:size]})
    assert watched.released == [1, 0]
    assert watched.graphs == [-1, 0, -1, 1, 0, -1, 1, -1, 0]
    assert len(runs._recorded) == 2


def test_a_version_that_cannot_release_graphs_records_no_more(session, monkeypatch):
    """Further sizes run without a recording, and compute the same."""
    monkeypatch.setattr(cuda_graph, "MAX_GRAPHS", 1)
    watched = Watched(session, releases=False)
    runs = RecordedRuns(watched, ["logits"], ("cpu", 0))
    for size in (1, 2, 2, 1):
        (expected,) = session.run(["logits"], {"pixel_values": X[:size]})
        np.testing.assert_array_equal(runs.run({"pixel_values": X[:size]})["logits"], expected)
    assert watched.graphs == [-1, 0, -1, -1, 0]


def test_the_real_session_releases_a_graph(session, monkeypatch):
    """On the CPU there is none to release, and no error."""
    monkeypatch.setattr(cuda_graph, "MAX_GRAPHS", 1)
    runs = RecordedRuns(session, ["logits"], ("cpu", 0))
    for size in (1, 2, 1):
        (expected,) = session.run(["logits"], {"pixel_values": X[:size]})
        np.testing.assert_array_equal(runs.run({"pixel_values": X[:size]})["logits"], expected)


def test_one_thread_does_every_run(session, monkeypatch):
    """ONNX Runtime keeps graphs by thread: every thread would record again."""
    monkeypatch.setattr(cuda_graph, "MAX_GRAPHS", 1)
    watched = Watched(session)
    runs = RecordedRuns(watched, ["logits"], ("cpu", 0))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: runs.run({"pixel_values": X[: 1 + i % 2]}), range(12)))
    assert len(watched.threads) == 1
    assert threading.get_ident() not in watched.threads


def test_an_input_that_is_not_contiguous_is_copied_correctly(session, runs):
    """Channels last in memory."""
    strided = np.ascontiguousarray(X.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    (expected,) = session.run(["logits"], {"pixel_values": X})
    for _ in range(2):
        np.testing.assert_array_equal(runs.run({"pixel_values": strided})["logits"], expected)


def test_threads_take_turns(session, runs):
    """They share the buffers."""

    def work(i: int) -> bool:
        batch = X[i : i + 1]
        (expected,) = session.run(["logits"], {"pixel_values": batch})
        return all(
            np.array_equal(runs.run({"pixel_values": batch})["logits"], expected) for _ in range(20)
        )

    with ThreadPoolExecutor(5) as pool:
        assert all(pool.map(work, range(5)))

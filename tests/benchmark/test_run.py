"""Candidates run in turns, each in its own process; what did not run says why."""

from __future__ import annotations

import dataclasses
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper

from vit_export.artifact.golden import golden_path
from vit_export.benchmark import run as benchmark
from vit_export.benchmark.candidates import Candidate, plan
from vit_export.benchmark.run import Timing, measure
from vit_export.errors import UsageError
from vit_export.host.child_process import Worker
from vit_export.pipeline.export import export
from vit_export.pipeline.settings import ExportSettings

QUICK = Timing(rounds=3, min_time_s=0.02, warmup_s=0.0, timeout_s=600.0)


@pytest.fixture(scope="module")
def seeded(tmp_path_factory) -> Path:
    """An artifact whose weights came from a seed, which torch can therefore draw again."""
    path = tmp_path_factory.mktemp("seeded") / "seeded.onnx"
    export(
        "mnist",
        path,
        settings=ExportSettings(overrides={"depth": 2, "embed_dim": 32, "num_heads": 2}, seed=3),
    )
    return path


@pytest.fixture(scope="module")
def pair(seeded, tmp_path_factory) -> list[Candidate]:
    """The artifact and a copy of it, on the CPU."""
    copy = copy_of(seeded, tmp_path_factory.mktemp("copy"))
    return plan([seeded, copy], providers=["cpu"])


def copy_of(artifact: Path, folder: Path) -> Path:
    """An artifact and its golden file, elsewhere."""
    shutil.copy(artifact, folder)
    shutil.copy(golden_path(artifact), folder)
    return folder / artifact.name


def test_a_row_holds_every_result_of_a_candidate(seeded, pair):
    """Latency, throughput, load, memory, size, distance; ratios to the first at its batch."""
    rows = measure(pair, [3, 1], timing=QUICK)
    assert [(row.batch, row.provider, row.error) for row in rows] == [
        (1, "cpu", ""), (1, "cpu", ""), (3, "cpu", ""), (3, "cpu", ""),
    ]  # fmt: skip
    for row in rows:
        assert row.images_per_s == pytest.approx(1e3 * row.batch / row.median_ms)
        assert row.iqr_ms >= 0
        assert len(row.round_medians_ms) == 3
        assert row.runs >= 3
        assert 0 < row.load_s < 60
        assert 2e7 < row.peak_rss_bytes < 3e8  # not this process's, which holds torch
        assert row.file_bytes == seeded.stat().st_size
        assert 0 < row.max_abs <= row.tolerance
        assert row.precision == "fp32"
        assert row.accepted is True
        assert all(note.startswith("unsteady") for note in row.notes)
    assert rows[0].speedup == rows[2].speedup == 1
    assert rows[1].speedup == pytest.approx(rows[0].median_ms / rows[1].median_ms)
    assert rows[3].speedup == pytest.approx(rows[2].median_ms / rows[3].median_ms)


def test_rounds_alternate_between_the_candidates(pair, monkeypatch):
    """A B A B, so that a machine that slows down slows all of them."""
    asked: list[tuple[int, str]] = []
    ask = Worker.ask

    def record(child: Worker, order: str, **arguments: object) -> dict:
        asked.append((id(child), "warm" if "min_runs" in arguments else order))
        return ask(child, order, **arguments)

    monkeypatch.setattr(Worker, "ask", record)
    measure(pair, timing=QUICK)
    first, second = dict.fromkeys(child for child, _ in asked)
    assert [child for child, order in asked if order == "time"] == 3 * [first, second]


def test_torch_is_timed_only_with_the_artifacts_weights(seeded, tmp_path):
    """Drawn from the seed and compared with the golden file; an altered manifest is caught."""
    found = plan([seeded], providers=["cpu"], against=["torch"])
    _, row = measure(found, timing=QUICK)
    assert (row.name, row.provider, row.error) == ("torch", "cpu", "")
    assert 0 < row.max_abs <= row.tolerance
    assert row.file_bytes is None
    other = copy_of(seeded, tmp_path)
    model = onnx.load(other)
    (entry,) = (entry for entry in model.metadata_props if entry.key == "vit_export")
    entry.value = re.sub(r'(\(seed |"seed": ?)3', r"\g<1>4", entry.value)
    onnx.save(model, other)
    artifact, row = measure(plan([other], providers=["cpu"], against=["torch"]), timing=QUICK)
    assert artifact.error == ""
    assert "its weights are not the artifact's" in row.error
    assert row.median_ms is None
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "m.onnx"
    link.symlink_to(other)  # the golden file is beside the file that the link leads to
    artifact, _ = measure(plan([link], against=["torch"]), timing=QUICK)
    assert artifact.max_abs is not None
    golden_path(other).unlink()
    artifact, row = measure(plan([other], providers=["cpu"], against=["torch"]), timing=QUICK)
    assert "there is no golden file" in artifact.notes[0]
    assert artifact.max_abs is None
    assert artifact.median_ms > 0
    assert "cannot check that its weights are the artifact's" in row.error


def test_a_compiler_that_fails_is_reported_in_its_row(seeded, monkeypatch):
    """No C++ compiler, no compiled torch; never eager torch unasked."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    _, row = measure(plan([seeded], providers=["cpu"], against=["torch-compile"]), timing=QUICK)
    assert "no-such-compiler" in row.error
    assert row.median_ms is None


@pytest.mark.slow
def test_compiled_torch_has_the_same_weights(seeded):
    """Compiled once for each batch size."""
    candidates = plan([seeded], providers=["cpu"], against=["torch-compile"])
    rows = [row for row in measure(candidates, [1, 2], timing=QUICK) if row.name == "torch-compile"]
    assert [(row.batch, row.error) for row in rows] == [(1, ""), (2, "")]
    assert all(0 < row.max_abs <= row.tolerance for row in rows)


def test_torch_needs_a_checkpoint_where_no_seed_gave_the_weights(tiny_export):
    """And says where the weights came from."""
    with pytest.raises(UsageError, match=r"given module(.|\n)*--weights FILE"):
        measure(plan([tiny_export.path], against=["torch"]), timing=QUICK)


def test_an_artifact_with_a_fixed_batch_is_timed_at_no_other(exported):
    """And none at its own."""
    path = exported(settings=ExportSettings(batch=3)).path
    rows = measure(plan([path], providers=["cpu"]), [1, 3, 4], timing=QUICK)
    assert [row.batch for row in rows if row.error] == [1, 4]
    assert "takes batches of 3 only" in rows[0].error
    assert rows[1].median_ms > 0
    assert rows[1].speedup == 1


def test_a_missing_provider_is_reported_in_its_row(seeded):
    """Never the CPU unasked; the others run on."""
    cuda, cpu = measure(plan([seeded], providers=["cuda", "cpu"]), timing=QUICK)
    assert "pip" in cuda.error
    assert (cuda.provider, cuda.median_ms) == ("cuda", None)
    assert cpu.error == ""
    assert cpu.speedup is None
    with pytest.raises(UsageError, match="did you mean 'cuda'"):
        measure(plan([seeded], providers=["cudda"]), timing=QUICK)


def test_an_artifact_outside_its_gate_has_a_note_and_nan_is_an_error(seeded, tmp_path):
    """A wrong weight is a note, NaN a refusal."""
    for factor, place in ((1.01, "notes"), (float("nan"), "error")):
        folder = tmp_path / place
        folder.mkdir()
        damaged = copy_of(seeded, folder)
        model = onnx.load(damaged)
        weight = next(t for t in model.graph.initializer if t.name == "blocks.0.mlp.fc1.weight")
        values = (numpy_helper.to_array(weight) * factor).astype("float32")
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))
        onnx.save(model, damaged)
        (row,) = measure(plan([damaged], providers=["cpu"]), timing=QUICK)
        if place == "notes":
            assert row.median_ms > 0
            assert row.accepted is False
            assert "outside its gate at batch 1" in row.notes[0]
        else:
            assert row.median_ms is None
            assert "NaN" in row.error


def test_a_candidate_that_dies_leaves_the_others_running(pair, monkeypatch):
    """Its row says what ended it, at this batch size and all later ones."""
    ask = Worker.ask
    victims: list[Worker] = []

    def killing(child: Worker, order: str, **arguments: object) -> dict:
        victims.append(child)
        if order == "time" and child is victims[0]:
            child.kill()
        return ask(child, order, **arguments)

    monkeypatch.setattr(Worker, "ask", killing)
    rows = measure(pair, [1, 2], timing=QUICK)
    assert ["SIGKILL" in row.error for row in rows] == [True, False, True, False]


@pytest.mark.parametrize(
    "fields",
    [{"rounds": 0}, {"min_time_s": -1.0}, {"warmup_s": float("nan")}, {"timeout_s": 0.0}],
)
def test_a_timing_outside_its_range_is_an_error(fields):
    """When it is made."""
    with pytest.raises(UsageError, match="expected"):
        dataclasses.replace(QUICK, **fields)


def test_a_disturbed_warm_up_takes_no_time_from_the_candidate(pair, monkeypatch):
    """Turns last what was asked for, whatever the first runs took."""
    ask = Worker.ask

    def disturbed(child: Worker, order: str, **arguments: object) -> dict:
        answer = ask(child, order, **arguments)
        if "min_runs" in arguments:
            return {**answer, "seconds": [1.0]}
        timed.extend(answer.get("seconds", ()))
        return answer

    timed: list[float] = []
    monkeypatch.setattr(Worker, "ask", disturbed)
    (row,) = measure(pair[:1], timing=dataclasses.replace(QUICK, rounds=2, min_time_s=0.2))
    assert row.runs == len(timed)
    assert sum(timed) >= 0.1  # what lies between two runs is not in it


@dataclasses.dataclass
class Scripted:
    """A child whose distance, and whose times, are known."""

    distances: dict[int, float]
    turns: list[list[float]]

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ask(self, order: str, **arguments: Any) -> dict[str, Any]:
        """Answer as a stopwatch would."""
        if order == "distance":
            max_abs = self.distances[arguments["batch"]]
            return {"max_abs": max_abs, "tolerance": 1.0, "accepted": max_abs <= 1.0}
        if order == "time" and "min_runs" not in arguments:
            return {"seconds": self.turns.pop(0)}
        return {}


def test_the_distance_is_measured_at_every_batch_size(pair, monkeypatch):
    """That of dynamic INT8 depends on it; each row has its own verdict."""
    scripted = Scripted({1: 0.5, 8: 1.5}, turns=[[0.01]] * 4)
    monkeypatch.setattr(benchmark, "Worker", lambda module: scripted)
    rows = measure(pair[:1], [1, 8], timing=dataclasses.replace(QUICK, rounds=2))
    assert [(row.max_abs, row.accepted) for row in rows] == [(0.5, True), (1.5, False)]
    assert rows[0].notes == ()
    assert rows[1].notes == (
        "outside its gate at batch 8: max|y - y64| = 1.5, allowed 1; see: vit-export validate",
    )


@pytest.mark.parametrize(
    ("turns", "note"),
    [
        ([[0.01], [0.014], [0.012]], ""),
        ([[0.01], [0.016], [0.012]], "between 10 and 16 ms"),
        ([[0.01, 0.01, 0.01, 0.01, 0.04]] * 2, ""),
        ([[0.01, 0.01, 0.01, 0.04, 0.04]] * 2, "the IQR is 300% of the median"),
        ([[0.01, 0.01, 0.01, 0.04, 0.04]], "unsteady at batch 1: the IQR is 300% of the median"),
    ],
)
def test_unsteady_times_are_noted(pair, monkeypatch, turns, note):
    """Rounds that differ by half, or runs that spread wider than their median."""
    monkeypatch.setattr(benchmark, "Worker", lambda module: Scripted({1: 0.5}, turns=[*turns]))
    (row,) = measure(pair[:1], timing=dataclasses.replace(QUICK, rounds=len(turns)))
    assert len(row.notes) == bool(note)
    assert note in "".join(row.notes)


def test_the_spread_is_the_interquartile_range_of_all_runs(pair, monkeypatch):
    for turns, iqr_ms in (([[1.0, 2.0], [3.0, 4.0, 100.0]], 2000.0), ([[1.0]], 0.0)):
        monkeypatch.setattr(benchmark, "Worker", lambda module, t=turns: Scripted({1: 0.5}, [*t]))
        (row,) = measure(pair[:1], timing=dataclasses.replace(QUICK, rounds=len(turns)))
        assert row.iqr_ms == iqr_ms


def test_a_candidate_that_hangs_is_killed(pair, monkeypatch):
    """Its row says so, at every batch size; the other one runs on."""
    ask = Worker.ask
    victims: list[Worker] = []

    def hanging(child: Worker, order: str, **arguments: Any) -> dict:
        victims.append(child)
        if child is victims[0] and order == "time":
            child.send_signal(signal.SIGSTOP)
            arguments["timeout_s"] = 0.2
        return ask(child, order, **arguments)

    monkeypatch.setattr(Worker, "ask", hanging)
    rows = measure(pair, [1, 2], timing=QUICK)
    assert ["no answer within 0.2 s" in row.error for row in rows] == [True, False, True, False]

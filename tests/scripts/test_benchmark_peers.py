"""scripts/benchmark_peers: the same weights for everybody, turns, reasons, and the quick form."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vit_export.checkpoint.load import load_checkpoint
from vit_export.pipeline.export import ExportResult
from vit_export.runtime import load

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
sys.path.insert(0, str(SCRIPTS))
try:
    from peers import candidates, environments, materials, measure, pictures, report, stages
finally:
    sys.path.remove(str(SCRIPTS))


def plan(folder: Path, **fields: object) -> measure.Plan:
    """A plan whose every environment is this one."""
    known = {name: Path(sys.executable) for name in (*environments.ENVIRONMENTS, environments.OURS)}
    return measure.Plan(
        **{"variant": "tiny", "facts": {}, "folder": folder, "pythons": known, "threads": 1,
           "export_turns": 1, "rounds": 2, "turn_s": 0.0, "at_once": 7} | fields
    )  # fmt: skip


@pytest.fixture
def files(tmp_path: Path, tiny_export: ExportResult) -> Path:
    """The folder of a variant with a file of vit-export and its float64 reference."""
    (tmp_path / "ours.onnx").write_bytes(tiny_export.path.read_bytes())
    images = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
    with load(tiny_export.path, provider="cpu") as model:
        logits = model.run(images)
    np.savez(tmp_path / "reference.npz", pixel_values=images, logits=logits)
    return tmp_path


OURS = next(s for s in candidates.SESSIONS if s.name == candidates.OUR_FP32)
BARE = candidates.Session("bare", "onnxruntime", "onnx_session", candidates.OUR_FP32)


def test_both_layouts_of_the_weights_are_the_same_model(tmp_path, tiny_config):
    weights = materials.random_weights(tiny_config)
    materials.write_hugging_face(tiny_config, weights, tmp_path)
    loaded = load_checkpoint(tmp_path).model.state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())


def test_every_candidate_is_measured_in_turns_and_against_the_reference(files):
    rows = measure.measure_sessions(plan(files), [OURS, BARE], [1, 2])
    assert [(row["batch"], row["name"]) for row in rows] == [
        (1, OURS.name), (1, "bare"), (2, OURS.name), (2, "bare")
    ]  # fmt: skip
    for row in rows:
        assert row["ms_per_image"] > 0
        assert len(row["round_seconds"]) == 2
        assert row["max_abs"] < 1e-5
        assert row["top1"] == 1
    assert rows[0]["ratio_to_ours"] == 1


def test_a_folder_reader_that_skips_photographs_is_no_winner(files, photographs):
    """The others are compared by the classes that they find."""
    ours = next(s for s in candidates.FOLDERS if s.module == "our_folder")
    bare = next(s for s in candidates.FOLDERS if s.module == "one_by_one")
    folder = files / "photographs"
    folder.mkdir()
    for number, photograph in enumerate(photographs[:2]):
        Image.open(photograph).convert("RGB").save(folder / f"{number}.jpg")
    measured = measure.measure_folders(plan(files), [ours, bare], 2)
    assert [row["same_class"] for row in measured] == [1, 1]
    skipped = measure.measure_folders(plan(files), [ours, bare], 3)
    assert {row["failed"] for row in skipped} == {"classified 2 of 3 photographs"}


def test_a_wrong_model_has_a_large_error(files):
    reference = dict(np.load(files / "reference.npz"))
    np.savez(files / "reference.npz", **reference | {"logits": reference["logits"] + 1})
    (row,) = measure.measure_sessions(plan(files), [OURS, BARE], [1])[:1]
    assert row["max_abs"] == pytest.approx(1, abs=1e-3)


def test_what_cannot_run_is_a_row_with_the_reason(files):
    broken = candidates.Session("broken", "onnxruntime", "no_such_module", candidates.OUR_FP32)
    unexported = candidates.Session("late", "openvino", "openvino_session", candidates.OPENVINO)
    pythons = {**plan(files).pythons, "torch": "pip: no wheel"}
    missing = candidates.Session("missing", "torch", "torch_session")
    rows = measure.measure_sessions(
        plan(files, pythons=pythons), [OURS, broken, unexported, missing], [1]
    )
    reasons = {row["name"]: row.get("failed", "") for row in rows}
    assert reasons[OURS.name] == ""
    assert "No module named peers.no_such_module" in reasons["broken"]
    assert reasons["late"] == "the export of OpenVINO fp32 failed"
    assert reasons["missing"] == "pip: no wheel"


def test_an_export_that_fails_is_a_row_and_what_needs_its_file_too(tmp_path):
    failing = candidates.Export(
        candidates.PLAIN, "torch", (candidates.PYTHON, "-c", "raise SystemExit('no memory')"),
        "plain.onnx",
    )  # fmt: skip
    after = next(e for e in candidates.EXPORTS if e.name == candidates.OPENVINO)
    rows = measure.measure_exports(plan(tmp_path), [failing, after])
    assert [row["failed"] for row in rows] == [
        "exit status 1: no memory", "needs the file of torch.onnx.export"
    ]  # fmt: skip


def test_our_first_candidate_runs_in_every_heat():
    heats = list(measure.heats(candidates.SESSIONS, 4))
    assert all(heat[0] is candidates.SESSIONS[0] and len(heat) <= 4 for heat in heats)
    assert [s for heat in heats for s in heat[1:]] == list(candidates.SESSIONS[1:])


def test_a_stage_is_measured_again_unless_its_settings_are_the_same(tmp_path):
    def rows(number: int, settings: dict, *, resume: bool) -> list:
        return stages.Stages(tmp_path, settings, resume).rows("exports", lambda: [{"n": number}])

    assert rows(1, {"threads": 2}, resume=False) == [{"n": 1}]
    assert rows(2, {"threads": 2}, resume=True) == [{"n": 1}]
    assert rows(3, {"threads": 2}, resume=False) == [{"n": 3}]
    assert rows(4, {"threads": 1}, resume=True) == [{"n": 4}]


@pytest.mark.parametrize(
    ("words", "reason"),
    [(["nothere"], "unknown variant 'nothere'"), (["--rounds", "0"], "--rounds"),
     (["--batch", "1,0"], "0: expected at least 1"), (["--output", "/dev/null/x"], "/dev/null/x")],
)  # fmt: skip
def test_wrong_words_are_refused_before_anything_is_installed(words, reason, tmp_path):
    folders = ["--files", tmp_path / "files", "--environments", tmp_path / "environments"]
    command = [sys.executable, SCRIPTS / "benchmark_peers", "--quick", *folders, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert reason in done.stderr
    assert not list(tmp_path.glob("environments/*"))


@pytest.mark.slow
def test_packages_that_cannot_be_installed_are_a_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setitem(
        environments.ENVIRONMENTS, "absent", environments.Environment(("no-such-package==1",))
    )
    with pytest.raises(environments.NotInstalled, match="no-such-package==1"):
        environments.python_of("absent", tmp_path)


def results() -> dict:
    """Results of one variant: a fast peer, a slow one, and one that did not run."""
    sessions = [
        {"batch": 1, "name": name, "ms_per_image": 10.0 * ratio, "cpu_ms_per_image": 10.0 * ratio,
         "images_per_s": 100 / ratio, "ratio_to_ours": ratio, "max_abs": 1e-6, "top1": 1.0,
         "peak_bytes": 10**8}
        for name, ratio in ((candidates.OUR_FP32, 1.0), (candidates.PLAIN, 1.25),
                            (candidates.OPENVINO, 2.0), (candidates.OUR_INT8, 0.5))
    ]  # fmt: skip
    sessions.append({"batch": 1, "name": candidates.NNCF, "failed": "pip: no wheel | none"})
    exports = [
        {"name": name, "after": "", "seconds": seconds, "cpu_seconds": 1.0, "peak_bytes": 10**9,
         "file_bytes": 10**6}
        for name, seconds in ((candidates.OUR_FP32, 3.0), (candidates.OPTIMUM, 4.0))
    ]  # fmt: skip
    folders = [row for row in sessions if "failed" not in row][:2]
    return {
        "date": "2026-01-01",
        "command": "scripts/benchmark_peers ti16 --output docs/performance",
        "machine": {"processor": "P", "cores": 2, "system": "Linux", "load_before": 0.1,
                    "others_after": 0.0, "busy": False,
                    "instructions": ["AVX2"]},
        "settings": {"threads": 2, "rounds": 7, "turn_s": 2.0, "photographs": 64,
                     "folder_batch": 8, "reference_images": 8, "export_turns": 2},
        "versions": {"openvino": {"openvino": "2026.4.1"}},
        "variants": [{"variant": "vit_tiny_test", "exports": exports, "sessions": sessions,
                      "folders": folders}],
    }  # fmt: skip


def test_the_page_says_what_was_measured_and_what_was_not():
    page = report.markdown(results())
    assert "vit-export fp32, batch 1: 0.80 of the time of torch.onnx.export" in page
    assert "vit-export int8, batch 1: 0.50 of the time of vit-export fp32" in page
    assert "export: 0.75 of the time and 1.00 of the memory of optimum" in page
    assert "photographs: 0.80 of the time of torch.onnx.export" in page
    assert f"| {candidates.NNCF} | not measured: pip: no wheel \\| none |" in page
    assert "AVX2, no VNNI" in page
    assert "Other programs" not in page


def test_a_busy_machine_is_named_on_the_page():
    busy = results()
    busy["machine"] |= {"busy": True, "load_before": 5.0}
    assert "**Other programs ran at the same time** (load 5.0" in report.markdown(busy)


def test_both_pictures_are_drawn(tmp_path):
    for path in pictures.draw(results()["variants"], tmp_path):
        assert path.stat().st_size > 5000


def test_the_committed_page_and_its_figures_are_of_one_run():
    folder = ROOT / "docs" / "performance"
    measured = json.loads((folder / "peers.json").read_text(encoding="utf-8"))
    page = (folder / "peers.md").read_text(encoding="utf-8")
    assert page == report.markdown(measured).rstrip() + "\n"


@pytest.mark.slow
def test_the_quick_form_measures_every_candidate(tmp_path):
    command = [sys.executable, SCRIPTS / "benchmark_peers", "--quick", "--files", tmp_path]
    subprocess.run(command, check=True, capture_output=True)
    (variant,) = json.loads((tmp_path / "peers.json").read_text(encoding="utf-8"))["variants"]
    assert {row["name"] for row in variant["sessions"]} == set(candidates.QUICK) - {
        candidates.ONE_BY_ONE
    }
    for row in variant["sessions"]:
        assert row["max_abs"] < (0.2 if row["name"] == candidates.OUR_INT8 else 1e-5)

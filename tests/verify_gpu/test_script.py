"""scripts/verify_gpu as a whole: where there is no GPU, and where there is a time limit."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from vit_export.host.doctor.checks import Fact

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "verify_gpu"


def run(*arguments: str | Path, packages: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the script where no GPU can be seen, with all packages or with none."""
    command = [sys.executable, *([] if packages else ["-S"]), SCRIPT, *arguments]
    return subprocess.run(
        list(map(str, command)), env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_without_its_packages_the_script_says_what_to_install():
    """Which ones are missing is known only after the import of the first."""
    done = run(packages=False)
    assert done.returncode == 1
    assert "is not installed: pip install 'vit-export[gpu,export]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_gpu_every_check_is_listed_as_not_run(tmp_path):
    """The exit status is not that of success."""
    from gpu_checks.plan import checks

    done = run("-o", tmp_path, "--folder", tmp_path / "artifacts")
    assert done.returncode == 3, done.stderr
    found = json.loads((tmp_path / "report.json").read_text())
    assert [check["name"] for check in found["checks"]] == [check.name for check in checks()]
    assert {check["status"] for check in found["checks"]} == {"not run"}
    assert all(check["why"].startswith("no NVIDIA GPU: ") for check in found["checks"])
    text = (tmp_path / "report.md").read_text()
    for check in checks():
        assert check.name in done.stdout
        assert f"| {check.name} | not run |" in text
    assert f"0 passed, 0 FAILED, {len(checks())} not run" in done.stdout


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("cuda parity edge fp32", "not installed: onnxruntime-gpu (the wheel for the CPU is)"),
        ("cuda graph edge", "not installed: onnxruntime-gpu (the wheel for the CPU is)"),
        ("tensorrt context dump", "not installed: onnxruntime-gpu (the wheel for the CPU is)"),
        ("tensorrt-rtx parity edge fp32", "not installed: onnxruntime_ep_nv_tensorrt_rtx"),
        ("matmul peak, float16", "the installed torch has no CUDA"),
        ("speed host: torch eager", "the installed torch has no CUDA"),
    ],
)
def test_a_check_without_its_package_is_not_run_and_says_which(tmp_path, name, why):
    """Also where there is a GPU; here each is asked alone."""
    done = run("--only", name, "--folder", tmp_path)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert (outcome["status"], outcome["why"]) == ("not run", why)


@pytest.fixture
def script(monkeypatch):
    """scripts/verify_gpu as a module, where there is a GPU."""
    loader = importlib.machinery.SourceFileLoader("verify_gpu", str(SCRIPT))
    spec = importlib.util.spec_from_loader("verify_gpu", loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    facts = tuple(
        Fact("gpu", name, value, usable=True)
        for name, value in {"driver": "CUDA 13.0", "GPU 0": "NVIDIA H100"}.items()
    )
    monkeypatch.setattr(module, "run_checks", lambda check: (facts, ()))
    monkeypatch.setattr(sys, "argv", ["verify_gpu"])
    return module


def reported(tmp_path) -> dict[str, str]:
    """Status by check, as the report in the file has it."""
    found = json.loads((tmp_path / "report.json").read_text())
    return {check["name"]: check["status"] for check in found["checks"]}


def run_stand_ins(script, monkeypatch, tmp_path, statuses: dict, **fields) -> int:
    """Run checks that end so; those of the report are written before each."""
    from gpu_checks.outcome import Check, Outcome

    seen = []

    def run_one(check, command, folder, left_s):
        seen.append((check.name, reported(tmp_path) if seen else {}, list(folder.iterdir())))
        if statuses[check.name] is KeyboardInterrupt:
            raise KeyboardInterrupt
        return Outcome(check.name, statuses[check.name])

    monkeypatch.setattr(script, "run_one", run_one)
    chosen = [
        Check(name, print, runs_artifact=True, after=fields.get("after", {}).get(name, ""))
        for name in statuses
    ]
    asked = Namespace(
        folder=tmp_path / "artifacts", output=tmp_path, minutes=fields.get("minutes", 10),
        resume=fields.get("resume", False),
    )  # fmt: skip
    fields.get("seen", []).append(seen)
    return script.run_and_report(chosen, asked)


def test_the_report_is_there_after_every_check(script, monkeypatch, tmp_path):
    """Also when somebody interrupts the run; what did not run is listed as such."""
    seen = []
    statuses = {"a": "passed", "b": "passed", "c": KeyboardInterrupt, "d": "passed"}
    assert run_stand_ins(script, monkeypatch, tmp_path, statuses, seen=seen) == 130
    (_, _, (name, before, _)) = seen[0]
    assert name == "c"
    assert before == {"a": "passed", "b": "passed", "c": "not run", "d": "not run"}
    assert reported(tmp_path) == before


def test_files_of_another_check_must_come_from_the_same_run(script, monkeypatch, tmp_path):
    """One that failed has made nothing; and what an earlier run left is gone."""
    stale = tmp_path / "artifacts" / "run" / "b16.fp16.tensorrt.engine"
    stale.parent.mkdir(parents=True)
    stale.touch()
    seen = []
    statuses = {"build": "FAILED", "use": "passed", "other": "passed"}
    status = run_stand_ins(script, monkeypatch, tmp_path, statuses, seen=seen,
                           after={"use": "build", "other": ""})  # fmt: skip
    assert status == 1
    assert reported(tmp_path) == {"build": "FAILED", "use": "not run", "other": "passed"}
    assert [files for _, _, files in seen[0]] == [[], []]


def test_a_resumed_run_keeps_files_and_runs_only_what_has_not_passed(script, monkeypatch, tmp_path):
    """A run that was cut short goes on where it ended."""
    first = {"build": "passed", "use": KeyboardInterrupt, "other": "passed"}
    assert run_stand_ins(script, monkeypatch, tmp_path, first) == 130
    made = tmp_path / "artifacts" / "run" / "b16.engine"
    made.touch()
    seen = []
    second = dict.fromkeys(first, "passed")
    status = run_stand_ins(script, monkeypatch, tmp_path, second, seen=seen, resume=True,
                           after={"use": "build"})  # fmt: skip
    assert status == 0
    assert [(name, files) for name, _, files in seen[0]] == [("use", [made]), ("other", [made])]
    assert reported(tmp_path) == second


def test_no_check_is_begun_in_the_last_seconds(script, monkeypatch, tmp_path):
    """It could only be cut short."""
    assert run_stand_ins(script, monkeypatch, tmp_path, {"a": "passed"}, minutes=0.1) == 3
    assert reported(tmp_path) == {"a": "not run"}


def test_a_check_is_run_by_the_script_itself(script, monkeypatch, tmp_path):
    """With the folder of this run, and an answer in a file."""
    from gpu_checks import plan

    why = "not installed: onnxruntime-gpu (the wheel for the CPU is)"
    chosen = [check for check in plan.checks() if check.name == "cuda parity edge fp32"]
    asked = Namespace(folder=tmp_path / "artifacts", output=tmp_path, minutes=10, resume=False)
    assert script.run_and_report(chosen, asked) == 3
    (check,) = json.loads((tmp_path / "report.json").read_text())["checks"]
    assert (check["status"], check["why"]) == ("not run", why)

"""The diagnosis of this machine, and of machines with one thing wrong."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vit_export.cli.report.machine import diagnosis_text
from vit_export.host.doctor import checks
from vit_export.host.doctor.abilities import Ability, Diagnosis, abilities_of
from vit_export.host.doctor.checks import Fact, Fault, run_checks

ROOT = Path(__file__).parents[3]


EXAMINE = """
import dataclasses, json, sys
from vit_export.host.doctor.abilities import examine
found = dataclasses.asdict(examine())
found["loaded"] = sorted({"torch", "onnx", "onnxruntime", "numpy"} & set(sys.modules))
print(json.dumps(found))
"""


def test_a_bare_interpreter_reports_what_to_install(tmp_path: Path) -> None:
    """With nothing but vit-export and the library that compares versions."""
    packaging = Path(importlib.util.find_spec("packaging").origin).parent
    (tmp_path / "packaging").symlink_to(packaging, target_is_directory=True)
    info = tmp_path / "vit_export-1.0.dist-info"
    info.mkdir()
    about = ["Metadata-Version: 2.1", "Name: vit-export", "Version: 1.0", "Provides-Extra: cpu"]
    about += ["Provides-Extra: export", "Requires-Dist: torch>=2.9; extra == 'export'"]
    (info / "METADATA").write_text("\n".join(about) + "\n")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    child = subprocess.run(
        [sys.executable, "-S", "-c", EXAMINE], env=environment, capture_output=True, check=True
    )
    found = json.loads(child.stdout)
    assert "ONNX Runtime is not installed" in found["faults"][0]["what"]
    assert found["faults"][0]["remedy"].startswith("pip install 'vit-export[")
    by_name = {ability["name"]: ability for ability in found["abilities"]}
    for name in ("run on the CPU", "read image files", "export from torch"):
        assert not by_name[name]["possible"]
    assert by_name["export from torch"]["reason"].endswith("another version: torch")


def test_without_metadata_of_vit_export_its_packages_are_looked_for_by_import(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a checkout on PYTHONPATH; the packages have no metadata either."""

    def no_metadata(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", no_metadata)
    monkeypatch.setattr(checks.nvidia, "version_of", lambda *names: "")
    find = importlib.util.find_spec
    monkeypatch.setattr(checks, "find_spec", lambda name: None if name == "torch" else find(name))
    facts, faults = run_checks(checks.check_packages)
    by_name = {ability.name: ability for ability in abilities_of(facts)}
    assert faults == ()
    assert by_name["read image files"].possible
    reason = by_name["export from torch"].reason
    assert reason == "not installed, or another version: torch"


def test_the_machine_that_runs_the_tests_has_no_faults() -> None:
    """Every version, an active provider, every ability; no backend is loaded into the process."""
    child = subprocess.run(
        [sys.executable, "-c", EXAMINE], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = json.loads(child.stdout)
    assert (found["faults"], found["loaded"]) == ([], [])
    facts = {(fact["topic"], fact["name"]): fact["value"] for fact in found["facts"]}
    assert facts["package", "torch"] == importlib.metadata.version("torch")
    assert facts["provider", "CPUExecutionProvider"] == "active"
    assert ("provider", "AzureExecutionProvider") not in facts
    possible = {ability["name"] for ability in found["abilities"] if ability["possible"]}
    assert {"run on the CPU", "read image files", "export from torch"} <= possible


def test_two_wheels_of_onnxruntime_are_a_fault_with_one_command(install) -> None:
    """They overwrite each other's files, whatever happens to work at the moment."""
    install("onnxruntime-gpu", "1.31.1", module="onnxruntime")
    facts, (fault,) = run_checks(checks.check_onnxruntime)
    assert "onnxruntime and onnxruntime-gpu are both installed" in fault.what
    assert fault.remedy.startswith("pip uninstall -y onnxruntime onnxruntime-gpu && pip install ")
    facts += run_checks(checks.check_packages)[0]
    by_name = {ability.name: ability for ability in abilities_of(facts)}
    for name in ("run on the CPU", "export from torch"):
        assert not by_name[name].possible
        assert "both installed" in by_name[name].reason
        assert by_name[name].remedy == "fix the fault first"


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("raise ImportError('libcudart.so.13 is missing')", "libcudart.so.13 is missing"),
        ("import os; os.abort()", "(killed by SIGABRT): no message"),
    ],
)
def test_a_wheel_that_cannot_be_imported_is_a_fault(install, source: str, cause: str) -> None:
    """Also when importing it ends the process: that process is a child."""
    install("onnxruntime", "1.99", module="onnxruntime", source=source)
    _, (fault,) = run_checks(checks.check_onnxruntime)
    assert "cannot be imported" in fault.what
    assert cause in fault.what
    assert fault.remedy == "pip install --force-reinstall --no-deps onnxruntime"


def test_a_provider_that_computes_something_else_is_a_fault(install, falling_back) -> None:
    source = falling_back.replace('["CUDAExecutionProvider", ', "[").replace("@", "+")
    install("onnxruntime", "1.99", module="onnxruntime", source=source)
    _, (fault,) = run_checks(checks.check_onnxruntime)
    assert "CPUExecutionProvider does not run: x @ x gives" in fault.what


def test_the_table_shows_every_fact_reason_and_remedy() -> None:
    facts = (Fact("package", "torch", "2.13.0", True), Fact("gpu", "driver", "no library", False))
    fault = Fault("a driver that is too old", "update it")
    ability = Ability("run on CUDA", False, "the reason", "pip install this")
    text = diagnosis_text(Diagnosis(facts, (fault,), (ability,)))
    shown = ["torch  2.13.0", "driver  no library", "run on CUDA  no", "the reason"]
    shown += ["pip install this", "a driver that is too old", "fix: update it"]
    for expected in shown:
        assert expected in text
    assert diagnosis_text(Diagnosis(facts, (), (ability,))).endswith("No problems.")

"""The diagnosis of this machine, and of machines with one thing wrong."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vit_export.cli.report.diagnosis import diagnosis_text
from vit_export.host import doctor
from vit_export.host.doctor import Ability, Diagnosis, Fact, Fault

ROOT = Path(__file__).parents[3]


def possible(diagnosis: Diagnosis) -> dict[str, bool]:
    """What can be done, by name."""
    return {ability.name: ability.possible for ability in diagnosis.abilities}


def test_the_machine_that_runs_the_tests_has_no_faults() -> None:
    """A full installation is found whole: every version, an active provider, every ability."""
    diagnosis = doctor.examine()
    assert diagnosis.faults == ()
    assert Fact("package", "torch", importlib.metadata.version("torch"), True) in diagnosis.facts
    assert Fact("provider", "CPUExecutionProvider", "active", True) in diagnosis.facts
    assert "AzureExecutionProvider" not in {fact.name for fact in diagnosis.facts}
    can = possible(diagnosis)
    for name in ("run on the CPU", "read image files", "export from torch"):
        assert can[name]


def test_examining_loads_no_backend_into_the_process() -> None:
    """Versions come from metadata and probes run in children."""
    code = (
        "import sys; from vit_export.host import doctor; doctor.examine(); "
        "print({'torch', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules))"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert child.stdout == "set()\n"


def test_both_onnxruntime_wheels_are_a_fault_with_one_command(install) -> None:
    """They overwrite each other's files, whatever happens to work at the moment."""
    install("onnxruntime-gpu", "1.31.1", module="onnxruntime")
    diagnosis = doctor.examine()
    (fault,) = diagnosis.faults
    assert "onnxruntime and onnxruntime-gpu are both installed" in fault.what
    assert fault.remedy.startswith("pip uninstall -y onnxruntime onnxruntime-gpu && pip install ")
    assert not possible(diagnosis)["run on the CPU"]
    assert not possible(diagnosis)["export from torch"]
    assert {a.remedy for a in diagnosis.abilities if "both installed" in a.reason} == {
        "mend the fault first"
    }


def test_a_bare_interpreter_is_told_what_to_install() -> None:
    """Without any package nothing can be done, and each line says what would change that."""
    code = "import json; from vit_export.host import doctor; print(json.dumps(doctor.examine().to_dict()))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.run(
        [sys.executable, "-S", "-c", code], env=environment, capture_output=True, check=True
    )
    found = json.loads(child.stdout)
    assert "ONNX Runtime is not installed" in found["faults"][0]["what"]
    assert found["faults"][0]["remedy"].startswith("pip install 'vit-export[")
    assert not any(ability["possible"] for ability in found["abilities"])


def test_a_package_that_is_too_old_is_a_fault(install) -> None:
    """The command names the oldest version that works."""
    install("torch", "2.8.1")
    (fault,) = doctor.examine().faults
    assert fault == Fault(
        "torch 2.8.1 is older than 2.9, the oldest that vit-export works with",
        "pip install --upgrade 'torch>=2.9'",
    )


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise ImportError('libcudart.so.13 is missing')", "libcudart.so.13 is missing"),
        ("import os; os.abort()", "it said nothing (exit status -6)"),
    ],
)
def test_a_wheel_that_cannot_be_imported_is_a_fault(install, source: str, said: str) -> None:
    """Also when it takes its interpreter down: that interpreter is a child."""
    install("onnxruntime", "1.99", module="onnxruntime", source=source)
    (fault,) = doctor.examine().faults
    assert "cannot be imported" in fault.what
    assert said in fault.what
    assert fault.remedy == "pip install --force-reinstall --no-deps onnxruntime"


def test_a_provider_that_computes_something_else_is_a_fault(install, falling_back) -> None:
    """It answers, and the answer is wrong."""
    source = falling_back.replace('["CUDAExecutionProvider", ', "[").replace("@", "+")
    install("onnxruntime", "1.99", module="onnxruntime", source=source)
    (fault,) = doctor.examine().faults
    assert "CPUExecutionProvider does not run: x @ x gives" in fault.what


def test_the_table_shows_every_fact_reason_and_remedy() -> None:
    """What is in the data is in the text."""
    facts = (Fact("package", "torch", "2.13.0", True), Fact("gpu", "driver", "no library", False))
    fault = Fault("a driver that is too old", "update it")
    ability = Ability("run on CUDA", False, "the reason", "pip install this")
    text = diagnosis_text(Diagnosis(facts, (fault,), (ability,)))
    shown = ["torch  2.13.0", "driver  no library", "run on CUDA  no", "the reason"]
    shown += ["pip install this", "a driver that is too old", "fix: update it"]
    for expected in shown:
        assert expected in text
    assert diagnosis_text(Diagnosis(facts, (), (ability,))).endswith("No problems.")

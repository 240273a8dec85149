"""The diagnosis of this machine, and of machines with one thing wrong."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vit_export import doctor, probe
from vit_export.doctor import Ability, Diagnosis, Fact, Facts, Fault

ROOT = Path(__file__).parents[1]
Install = Callable[..., None]

# What onnxruntime-gpu does where CUDA is missing: no error, and a session on the CPU.
FALLING_BACK = """
def get_available_providers():
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]

def preload_dlls():
    print("Failed to load libcublasLt.so.13")

class InferenceSession:
    def __init__(self, model, providers):
        if providers == ["CUDAExecutionProvider"]:
            os.write(2, b"FAIL : Failed to load library x.so with error: libcublasLt.so.13: "
                        b"cannot open shared object file: No such file or directory\\n")

    def get_providers(self):
        return ["CPUExecutionProvider"]

    def run(self, outputs, feeds):
        return [feeds["x"] @ feeds["x"]]

import os
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Lay a distribution, and a module if its source is given, in front of what is installed."""

    def put(
        distribution: str, version: str, *, module: str = "", source: str | None = None
    ) -> None:
        info = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        about = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        (info / "METADATA").write_text(about)
        (info / "top_level.txt").write_text(f"{module or distribution}\n")
        if source is not None:
            (tmp_path / module).mkdir()
            (tmp_path / module / "__init__.py").write_text(source)

    monkeypatch.syspath_prepend(tmp_path)
    return put


@pytest.fixture
def gpu_wheel_without_cuda(install: Install, tmp_path: Path, no_wheel: None) -> None:
    """The GPU wheel alone, on a machine that lacks the CUDA libraries."""
    install("onnxruntime-gpu", "1.31.1", module="onnxruntime", source=FALLING_BACK)
    (tmp_path / "onnxruntime" / "capi").mkdir()
    (tmp_path / "onnxruntime" / "capi" / "__init__.py").touch()
    info = tmp_path / "onnxruntime" / "capi" / "build_and_package_info.py"
    info.write_text('cuda_version = "13.0"\n')


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the onnxruntime wheel that the tests themselves need."""
    owners = importlib.metadata.packages_distributions

    def without_it() -> dict[str, list[str]]:
        return {m: [n for n in names if n != "onnxruntime"] for m, names in owners().items()}

    monkeypatch.setattr(importlib.metadata, "packages_distributions", without_it)


def with_gpu(cuda: str) -> Facts:
    """What check_nvidia finds on a machine with a GPU."""
    return (Fact("gpu", "driver", f"CUDA {cuda}", usable=True),)


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
        "import sys; from vit_export import doctor; doctor.examine(); "
        "print({'torch', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules))"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert child.stdout == "set()\n"


def test_both_onnxruntime_wheels_are_a_fault_with_one_command(install: Install) -> None:
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
    code = (
        "import json; from vit_export import doctor; print(json.dumps(doctor.examine().to_dict()))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.run(
        [sys.executable, "-S", "-c", code], env=environment, capture_output=True, check=True
    )
    found = json.loads(child.stdout)
    assert "ONNX Runtime is not installed" in found["faults"][0]["what"]
    assert found["faults"][0]["remedy"].startswith("pip install 'vit-export[")
    assert not any(ability["possible"] for ability in found["abilities"])


def test_a_package_that_is_too_old_is_a_fault(install: Install) -> None:
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
def test_a_wheel_that_cannot_be_imported_is_a_fault(
    install: Install, source: str, said: str
) -> None:
    """Also when it takes its interpreter down: that interpreter is a child."""
    install("onnxruntime", "1.99", module="onnxruntime", source=source)
    (fault,) = doctor.examine().faults
    assert "cannot be imported" in fault.what
    assert said in fault.what
    assert fault.remedy == "pip install --force-reinstall --no-deps onnxruntime"


def test_a_provider_that_falls_back_is_not_active() -> None:
    """The CPU wheel accepts a request for CUDA and runs on the CPU."""
    answer = probe.in_child(probe.probe_provider, "CUDAExecutionProvider")
    assert answer == {"error": "ONNX Runtime fell back to CPUExecutionProvider"}


def test_a_provider_that_computes_something_else_is_a_fault(install: Install) -> None:
    """It answers, and the answer is wrong."""
    source = FALLING_BACK.replace('["CUDAExecutionProvider", ', "[").replace("@", "+")
    install("onnxruntime", "1.99", module="onnxruntime", source=source)
    (fault,) = doctor.examine().faults
    assert "CPUExecutionProvider does not run: x @ x gives" in fault.what


def test_a_probe_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver may hang for ever."""
    monkeypatch.setattr(probe, "TIMEOUT_S", 0.01)
    answer = probe.in_child(probe.probe_provider, "CPUExecutionProvider")
    assert answer == {"error": "no answer within 0.01 s"}


@pytest.mark.usefixtures("gpu_wheel_without_cuda")
def test_an_idle_gpu_is_a_fault_that_names_the_missing_library() -> None:
    """ONNX Runtime only logs it."""
    facts, (fault,) = doctor.check_onnxruntime(with_gpu("13.1"))
    assert "CUDAExecutionProvider does not run: libcublasLt.so.13: cannot open" in fault.what
    assert fault.remedy == "pip install --upgrade 'vit-export[gpu]'"
    assert [fact.usable for fact in facts] == [False, True]


@pytest.mark.usefixtures("gpu_wheel_without_cuda")
def test_a_driver_too_old_for_the_wheel_is_named() -> None:
    """No package mends that."""
    _, (fault,) = doctor.check_onnxruntime(with_gpu("12.4"))
    assert "built for CUDA 13.0, the driver is for 12.4" in fault.what
    assert fault.remedy == "update the NVIDIA driver to one for CUDA 13.0 or newer"


@pytest.mark.usefixtures("gpu_wheel_without_cuda")
def test_a_gpu_wheel_without_a_gpu_is_no_fault() -> None:
    """It runs on the CPU, and the facts say that CUDA is not active."""
    facts, faults = doctor.check_onnxruntime(())
    assert faults == ()
    assert facts[0].value.startswith("compiled in, not active: libcublasLt.so.13")


def test_a_gpu_under_the_cpu_wheel_is_told_which_wheel_to_take() -> None:
    """First the one is removed, then the other installed."""
    facts = (*with_gpu("13.0"), Fact("package", "onnxruntime", "1.32.0", usable=True))
    ability = doctor.can_run_on_cuda(facts)
    assert not ability.possible
    assert ability.remedy == "pip uninstall -y onnxruntime && pip install 'vit-export[gpu]'"


@pytest.mark.parametrize(
    ("gpu", "installed", "possible", "remedy"),
    [
        (False, "tensorrt-rtx", True, ""),
        (False, "tensorrt", False, "pip install 'vit-export[tensorrt-rtx]'"),
        (True, "tensorrt", True, ""),
        (True, "tensorrt-rtx", True, ""),
        (True, "", False, "pip install 'vit-export[tensorrt]'"),
    ],
)
def test_only_tensorrt_rtx_builds_engines_without_a_gpu(
    gpu: bool, installed: str, possible: bool, remedy: str
) -> None:
    """TensorRT builds on the GPU that it builds for."""
    facts = with_gpu("13.0") if gpu else ()
    names = (installed, "cuda-bindings")
    facts += tuple(Fact("package", name, "1", usable=True) for name in names)
    ability = doctor.can_build_engines(facts)
    assert (ability.possible, ability.remedy) == (possible, remedy)


@pytest.mark.parametrize(
    ("answer", "usable", "faults"),
    [
        ({"absent": "libcuda.so.1: no such file"}, False, 0),
        ({"error": "cuInit: system driver mismatch (803)"}, False, 1),
        ({"cuda": "13.0", "gpus": []}, False, 0),
        ({"cuda": "13.0", "gpus": ["NVIDIA H200, compute capability 9.0, 140 GiB"]}, True, 0),
    ],
)
def test_a_driver_that_is_absent_is_no_fault_and_a_broken_one_is(
    monkeypatch: pytest.MonkeyPatch, answer: probe.Answer, usable: bool, faults: int
) -> None:
    """Most machines have no GPU; a driver that refuses is never meant to be there."""
    monkeypatch.setattr(doctor, "in_child", lambda function: answer)
    facts, found = doctor.check_nvidia(())
    assert (facts[0].usable, len(found)) == (usable, faults)
    assert len(facts) == 1 + len(answer.get("gpus", ()))


def test_the_table_shows_every_fact_reason_and_remedy() -> None:
    """What is in the data is in the text."""
    facts = (Fact("package", "torch", "2.13.0", True), Fact("gpu", "driver", "no library", False))
    fault = Fault("a driver that is too old", "update it")
    ability = Ability("run on CUDA", False, "the reason", "pip install this")
    text = doctor.render(Diagnosis(facts, (fault,), (ability,)))
    shown = ["torch  2.13.0", "driver  no library", "run on CUDA  no", "the reason"]
    shown += ["pip install this", "a driver that is too old", "mend: update it"]
    for expected in shown:
        assert expected in text
    assert doctor.render(Diagnosis(facts, (), (ability,))).endswith("No faults.")

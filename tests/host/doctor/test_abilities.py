"""What can be built and run on a machine, by the facts about it."""

from __future__ import annotations

import pytest
import tensorrt_rtx

from vit_export.host.doctor import abilities, checks
from vit_export.host.doctor.types import Ability, Fact, Facts

CUDA, TENSORRT = "run on CUDA", "run on TensorRT in ONNX Runtime"
RTX = "run on TensorRT-RTX in ONNX Runtime"
BUILD, RUN = "build TensorRT engines", "run TensorRT engines"


def ability(name: str, facts: Facts) -> Ability:
    """Return the ability of a name, with these facts."""
    (found,) = (ability for ability in abilities.abilities(facts) if ability.name == name)
    return found


def with_gpu(capability: str = "8.9", *facts: Fact) -> Facts:
    """A machine with one GPU, and more."""
    gpu = f"NVIDIA GPU, compute capability {capability}, 24 GiB"
    driver = Fact("gpu", "driver", "CUDA 13.1", usable=True)
    return (driver, Fact("gpu", "GPU 0", gpu, usable=True), *facts)


def packages(*names: str) -> Facts:
    """These packages are installed, and new enough."""
    return tuple(Fact("package", name, "13", usable=True) for name in names)


def test_with_a_gpu_and_the_cpu_wheel_the_remedy_replaces_the_wheel() -> None:
    facts = (*with_gpu(), Fact("package", "onnxruntime", "1.32.0", usable=True))
    found = ability(CUDA, facts)
    assert not found.possible
    assert found.remedy == "pip uninstall -y onnxruntime && pip install 'vit-export[gpu]'"


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
    """TensorRT builds on the GPU it builds for."""
    facts = (*(with_gpu() if gpu else ()), *packages(installed, "cuda-bindings"))
    found = ability(BUILD, facts)
    assert (found.possible, found.remedy) == (possible, remedy)


def test_without_a_gpu_the_reason_is_the_drivers_message():
    facts = (Fact("gpu", "driver", "libcuda.so.1: no such file", usable=False),)
    for name in (
        CUDA,
        TENSORRT,
        RTX,
        RUN,
    ):
        found = ability(name, facts)
        assert not found.possible
        assert found.reason == "no NVIDIA GPU: libcuda.so.1: no such file"


@pytest.mark.parametrize(
    ("capability", "too_old"), [("6.1", True), ("7.5", False), ("9.0", False), ("12.0", False)]
)
def test_cuda_13_has_no_kernels_for_old_gpus(capability, too_old):
    """Pascal and Volta: no other wheel helps there."""
    idle = Fact("provider", checks.CUDA, "compiled in, not active: why", usable=False)
    found = ability(CUDA, with_gpu(capability, idle))
    assert not found.possible
    assert ("6.1 is older than 7.5" in found.reason) == too_old
    assert (found.remedy == "use --provider cpu") == too_old


@pytest.mark.parametrize(
    ("provider", "name"),
    [
        (checks.CUDA, CUDA),
        (checks.TENSORRT, TENSORRT),
    ],
)
def test_a_provider_that_has_computed_is_possible_whatever_the_other_facts(
    monkeypatch, provider, name
):
    """An older CUDA on an old GPU; TensorRT from a .deb, which is no wheel."""
    monkeypatch.setattr(abilities, "tensorrt_conflict", lambda: "no wheel is installed")
    active = Fact("provider", provider, "active", usable=True)
    assert ability(name, with_gpu("6.1", active)).possible
    assert not ability(name, with_gpu("6.1")).possible


@pytest.mark.parametrize(
    ("capability", "possible"),
    [("7.5", False), ("8.0", False), ("8.6", True), ("8.9", True), ("9.0", False), ("10.0", False),
     ("12.0", True), ("12.1", True)],
)  # fmt: skip
def test_tensorrt_rtx_is_not_for_data_centre_gpus(capability, possible):
    """A100, H100 and B200, by the header of its plugin."""
    active = Fact("provider", checks.RTX, "plugin 0.5.0, active", usable=True)
    found = ability(RTX, with_gpu(capability, active))
    assert found.possible == possible
    assert possible or found.remedy == "use --provider cuda"


def test_a_missing_rtx_plugin_is_installed_with_any_wheel_of_onnxruntime():
    found = ability(RTX, with_gpu())
    assert found.remedy == "pip install onnxruntime-ep-nv-tensorrt-rtx"


def test_a_tensorrt_of_another_major_version_is_the_reason(monkeypatch):
    conflict = "ONNX Runtime is linked with TensorRT 10 and 11 is installed"
    monkeypatch.setattr(abilities, "tensorrt_conflict", lambda: conflict)
    monkeypatch.setattr(abilities, "tensorrt_install", lambda: "pip install that")
    found = ability(TENSORRT, with_gpu())
    assert (found.possible, found.reason, found.remedy) == (False, conflict, "pip install that")


def test_engines_run_with_a_gpu_and_either_flavour_of_tensorrt():
    for name in ("tensorrt", "tensorrt-rtx"):
        facts = with_gpu("8.9", *packages(name, "cuda-bindings"))
        assert ability(RUN, facts).possible
    assert ability(RUN, with_gpu()).remedy == "pip install 'vit-export[tensorrt]'"


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("name", [RUN, BUILD])
def test_engines_need_every_package_of_their_extra(flavour, name):
    """cuda-bindings runs them and reads the GPU; it is needed without a GPU as well."""
    found = ability(name, with_gpu("8.9", *packages(flavour)))
    assert not found.possible
    assert found.reason == "not installed, or another version: cuda-bindings"
    assert found.remedy == f"pip install 'vit-export[{flavour}]'"
    assert not ability(BUILD, packages(flavour)).possible


def test_tensorrt_rtx_on_an_h100_builds_for_other_gpus_only():
    """It runs none of them; with TensorRT too, both is possible."""
    rtx = packages("tensorrt-rtx", "cuda-bindings")
    why = "TensorRT-RTX does not compile for compute capability 9.0"
    run = ability(RUN, with_gpu("9.0", *rtx))
    assert (run.possible, run.reason) == (False, why)
    build = ability(BUILD, with_gpu("9.0", *rtx))
    assert build.possible
    assert build.reason == f"for other GPUs only, with --compute-capability: {why}"
    assert run.remedy == build.remedy == "pip install 'vit-export[tensorrt]'"
    for name in (RUN, BUILD):
        both = ability(name, with_gpu("9.0", *rtx, *packages("tensorrt")))
        assert (both.possible, both.reason) == (True, "")


def test_an_a100_runs_engines_of_tensorrt_rtx_but_not_its_plugin():
    """The plugin supports fewer GPUs than the module compiles for."""
    facts = with_gpu("8.0", *packages("tensorrt-rtx", "cuda-bindings"))
    assert ability(RUN, facts).possible
    assert not ability(RTX, facts).possible
    names = [name for name in tensorrt_rtx.ComputeCapability.__members__ if name[:2] == "SM"]
    assert {(int(n[2:-1]), int(n[-1])) for n in names} == set(abilities.RTX_TARGETS)

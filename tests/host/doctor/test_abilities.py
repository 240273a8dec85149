"""What can be built and run on a machine, by the facts about it."""

from __future__ import annotations

import pytest
import tensorrt_rtx

from vit_export.host import nvidia
from vit_export.host.doctor import abilities
from vit_export.host.doctor.abilities import RTX_TARGETS, Ability, abilities_of
from vit_export.host.doctor.checks import RUNTIME, Fact, Facts

CUDA, TENSORRT = "run on CUDA", "run on TensorRT in ONNX Runtime"
RTX = "run on TensorRT-RTX in ONNX Runtime"
BUILD, RUN = "build TensorRT engines", "run TensorRT engines"
BUILD_RTX = "build TensorRT-RTX engines"
CUDA_PYTHON = ("cuda-bindings", "cuda-core")


def ability(name: str, facts: Facts) -> Ability:
    """Return the ability of a name, with these facts."""
    return next(ability for ability in abilities_of(facts) if ability.name == name)


def with_gpu(capability: str = "8.9", *facts: Fact) -> Facts:
    """A machine with one GPU, and more."""
    gpu = f"NVIDIA GPU, compute capability {capability}, 24 GiB"
    driver = Fact("gpu", "driver", "CUDA 13.1", usable=True)
    return (driver, Fact("gpu", "GPU 0", gpu, usable=True), *facts)


def packages(*names: str) -> Facts:
    """These packages are installed, and new enough."""
    return tuple(Fact("package", name, "13", usable=True) for name in names)


def test_with_a_gpu_and_the_cpu_wheel_the_remedy_replaces_the_wheel() -> None:
    found = ability(CUDA, (*with_gpu(), *packages("onnxruntime")))
    assert not found.possible
    assert found.remedy == "pip uninstall -y onnxruntime && pip install 'vit-export[gpu]'"


@pytest.mark.parametrize(
    ("name", "gpu", "installed", "possible"),
    [
        (BUILD, True, "tensorrt", True),
        (BUILD, False, "tensorrt", False),
        (BUILD, True, "tensorrt-rtx", False),
        (BUILD_RTX, False, "tensorrt-rtx", True),
        (BUILD_RTX, True, "tensorrt-rtx", True),
        (BUILD_RTX, True, "tensorrt", False),
    ],
)
def test_only_tensorrt_rtx_builds_engines_without_a_gpu(
    name: str, gpu: bool, installed: str, possible: bool
) -> None:
    """Each backend is an ability of its own; TensorRT builds on the GPU it builds for."""
    facts = (*(with_gpu() if gpu else ()), *packages(installed, *CUDA_PYTHON))
    assert ability(name, facts).possible is possible


def test_without_a_gpu_the_reason_is_the_drivers_message() -> None:
    facts = (Fact("gpu", "driver", "libcuda.so.1: no such file", usable=False),)
    for name in (CUDA, TENSORRT, RTX, RUN):
        found = ability(name, facts)
        assert (found.possible, found.reason) == (
            False,
            "no NVIDIA GPU: libcuda.so.1: no such file",
        )


def test_a_provider_that_has_computed_is_possible_whatever_the_other_facts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An older CUDA on an old GPU; TensorRT from a .deb, which is no wheel."""
    monkeypatch.setattr(abilities, "tensorrt_conflict", lambda: ("no wheel is installed", "pip"))
    for provider, name in ((nvidia.CUDA, CUDA), (nvidia.TENSORRT, TENSORRT)):
        active = Fact("provider", provider, "active", usable=True)
        assert ability(name, with_gpu("6.1", active)).possible
        assert not ability(name, with_gpu("6.1")).possible


@pytest.mark.parametrize(
    ("capability", "possible"),
    [("7.5", False), ("8.0", False), ("8.6", True), ("8.9", True), ("9.0", False), ("10.0", False),
     ("12.0", True), ("12.1", True)],
)  # fmt: skip
def test_tensorrt_rtx_is_not_for_data_centre_gpus(capability: str, possible: bool) -> None:
    """A100, H100 and B200, by the header of its plugin."""
    active = Fact("provider", nvidia.RTX, "plugin 0.5.0, active", usable=True)
    found = ability(RTX, with_gpu(capability, active))
    assert found.possible == possible
    assert possible or found.remedy == "use --provider cuda"


def test_a_broken_onnxruntime_is_the_obstacle_of_every_provider() -> None:
    """The plugin of TensorRT-RTX needs it too."""
    broken = Fact("provider", RUNTIME, "two wheels are installed", usable=False)
    for name in (CUDA, TENSORRT, RTX):
        found = ability(name, with_gpu("8.9", broken))
        assert (found.reason, found.remedy) == ("two wheels are installed", "fix the fault first")


def test_a_missing_rtx_plugin_is_installed_with_any_wheel_of_onnxruntime() -> None:
    assert ability(RTX, with_gpu()).remedy == "pip install onnxruntime-ep-nv-tensorrt-rtx"


def test_a_tensorrt_of_another_major_version_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    conflict = ("ONNX Runtime is linked with TensorRT 10 and 11 is installed", "pip install that")
    monkeypatch.setattr(abilities, "tensorrt_conflict", lambda: conflict)
    assert ability(TENSORRT, with_gpu()) == Ability(TENSORRT, False, *conflict)


def test_engines_run_with_a_gpu_and_either_flavour_of_tensorrt() -> None:
    for name in ("tensorrt", "tensorrt-rtx"):
        assert ability(RUN, with_gpu("8.9", *packages(name, *CUDA_PYTHON))).possible
    assert ability(RUN, with_gpu()).remedy == "pip install 'vit-export[tensorrt]'"


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_engines_need_every_package_of_their_extra(flavour: str) -> None:
    """CUDA for Python runs them and reads the GPU; it is needed without a GPU as well."""
    found = ability(RUN, with_gpu("8.9", *packages(flavour)))
    assert found.reason == "not installed, or another version: cuda-bindings, cuda-core"
    assert found.remedy == f"pip install 'vit-export[{flavour}]'"
    assert not ability(BUILD, with_gpu("8.9", *packages(flavour))).possible
    assert not ability(BUILD, packages(flavour)).possible


def test_tensorrt_rtx_on_an_h100_builds_engines_and_runs_none() -> None:
    """It builds for other GPUs; with TensorRT too, both is possible."""
    rtx = packages("tensorrt-rtx", *CUDA_PYTHON)
    run = ability(RUN, with_gpu("9.0", *rtx))
    assert run.reason == "TensorRT-RTX does not compile for compute capability 9.0"
    assert run.remedy == "pip install 'vit-export[tensorrt]'"
    assert ability(BUILD_RTX, with_gpu("9.0", *rtx)).possible
    assert ability(RUN, with_gpu("9.0", *rtx, *packages("tensorrt"))).possible


def test_an_a100_runs_engines_of_tensorrt_rtx_but_not_its_plugin() -> None:
    """The plugin supports fewer GPUs than the module compiles for."""
    facts = with_gpu("8.0", *packages("tensorrt-rtx", *CUDA_PYTHON))
    assert ability(RUN, facts).possible
    assert not ability(RTX, facts).possible
    names = [name for name in tensorrt_rtx.ComputeCapability.__members__ if name[:2] == "SM"]
    assert {(int(n[2:-1]), int(n[-1])) for n in names} == set(RTX_TARGETS)

"""Abilities: what can be built and run here, and what makes the rest possible."""

from dataclasses import dataclass

from vit_export.host.doctor import checks
from vit_export.host.doctor.checks import CPU, RUNTIME, Facts, Faults, capability, find
from vit_export.host.nvidia import CUDA, RTX, RTX_INSTALL, TENSORRT, tensorrt_conflict

RTX_CAPABILITIES = ((8, 6), (8, 9))  # and from 12.0: tensorrt_rtx_provider_options.h of the plugin
# What TensorRT-RTX itself compiles engines for: its ComputeCapability.
RTX_TARGETS = ((7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1))
Obstacle = tuple[str, str]  # why something cannot be done, and what changes that


@dataclass(frozen=True)
class Ability:
    """Something that vit-export does, and whether this machine can do it."""

    name: str  # e.g. "run on CUDA"
    possible: bool
    reason: str = ""  # why not, or with which restriction
    remedy: str = ""  # what makes it possible


@dataclass(frozen=True)
class Diagnosis:
    """Facts and faults in the order of the checks, and every ability."""

    facts: Facts
    faults: Faults
    abilities: tuple[Ability, ...]


def examine() -> Diagnosis:
    """Diagnose this machine; takes a few seconds, more where TensorRT is installed."""
    facts, faults = checks.run_checks(*checks.CHECKS)
    return Diagnosis(facts, faults, abilities_of(facts))


def abilities_of(facts: Facts) -> tuple[Ability, ...]:
    """Return everything that vit-export does, and whether the facts allow it."""
    driver, gpu = find(facts, "gpu", "driver"), capability(facts)
    no_gpu = None if driver.usable else (f"no NVIDIA GPU: {driver.value}", "")
    on_cpu = _provider(facts, CPU, "pip install 'vit-export[cpu]'")
    gpu_wheel = "pip install 'vit-export[gpu]'"
    if find(facts, "package", "onnxruntime").usable:
        gpu_wheel = f"pip uninstall -y onnxruntime && {gpu_wheel}"
    on_rtx = _provider(facts, RTX, RTX_INSTALL)
    if not supported_by_rtx(gpu):
        reason = "TensorRT-RTX runs on compute capability 8.6, 8.9, and 12.0 or newer"
        on_rtx = reason, "use --provider cuda"
    tensorrt, rtx = _packages(facts, "tensorrt"), _packages(facts, "tensorrt-rtx")
    engines = tensorrt
    if tensorrt and find(facts, "package", "tensorrt-rtx").usable:
        reason = f"TensorRT-RTX does not compile for compute capability {gpu[0]}.{gpu[1]}"
        engines = rtx if gpu in ((0, 0), *RTX_TARGETS) else (reason, tensorrt[1])
    obstacles = {
        "run on the CPU": on_cpu,
        "read image files": _packages(facts, "cpu", "pillow"),
        "run on CUDA": no_gpu or _provider(facts, CUDA, gpu_wheel),
        "run on TensorRT in ONNX Runtime": no_gpu or _provider(facts, TENSORRT, gpu_wheel),
        "run on TensorRT-RTX in ONNX Runtime": no_gpu or on_rtx,
        "export from torch": _packages(facts, "export") or on_cpu,  # the gate runs on the CPU
        "build TensorRT engines": no_gpu or tensorrt,  # on the GPU that runs them
        "build TensorRT-RTX engines": rtx,  # for any GPU, without one
        "run TensorRT engines": no_gpu or engines,
    }
    return tuple(Ability(name, why is None, *(why or ())) for name, why in obstacles.items())


def _packages(facts: Facts, extra: str, *only: str) -> Obstacle | None:
    """What is missing of the packages of an extra, or of some of them."""
    packages = only or [requirement.name for requirement in checks.requirements()[extra]]
    missing = [package for package in packages if not find(facts, "package", package).usable]
    if not missing:
        return None
    reason = f"not installed, or another version: {', '.join(missing)}"
    return reason, f"pip install 'vit-export[{extra}]'"


def _provider(facts: Facts, provider: str, remedy: str) -> Obstacle | None:
    """Why an execution provider is not active."""
    fact, runtime = find(facts, "provider", provider), find(facts, "provider", RUNTIME)
    if fact.usable:
        return None
    if runtime in facts:
        return runtime.value, "fix the fault first"
    conflict = tensorrt_conflict() if provider == TENSORRT else None
    return conflict or (f"{provider}: {fact.value}", remedy)


def supported_by_rtx(gpu: tuple[int, int]) -> bool:
    """Return whether the plugin supports a compute capability; (0, 0), unknown, counts as yes."""
    return gpu == (0, 0) or gpu in RTX_CAPABILITIES or gpu >= (12, 0)

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
    driver = find(facts, "gpu", "driver")
    no_gpu = None if driver.usable else (f"no NVIDIA GPU: {driver.value}", "")
    on_cpu = _provider(facts, CPU, "cpu")
    tensorrt, rtx = _packages(facts, "tensorrt"), _packages(facts, "tensorrt-rtx")
    obstacles = {
        "run on the CPU": on_cpu,
        "read image files": _packages(facts, "cpu", "pillow"),
        "run on CUDA": no_gpu or _provider(facts, CUDA, "gpu"),
        "run on TensorRT in ONNX Runtime": no_gpu or _provider(facts, TENSORRT, "gpu"),
        "run on TensorRT-RTX in ONNX Runtime": no_gpu or _rtx_plugin(facts),
        "export from torch": _packages(facts, "export") or on_cpu,  # the gate runs on the CPU
        "build TensorRT engines": no_gpu or tensorrt,  # on the GPU that runs them
        "build TensorRT-RTX engines": rtx,  # for any GPU, without one
        "run TensorRT engines": no_gpu or (tensorrt and _rtx_engines(facts, tensorrt, rtx)),
    }
    return tuple(Ability(name, why is None, *(why or ())) for name, why in obstacles.items())


def _packages(facts: Facts, extra: str, *only: str) -> Obstacle | None:
    """What is missing of the packages of an extra, or of some of them."""
    packages = only or [requirement.name for requirement in checks.requirements().get(extra, ())]
    missing = [package for package in packages if not find(facts, "package", package).usable]
    if packages and not missing:
        return None
    reason = f"not installed, or another version: {', '.join(missing) or 'vit-export itself'}"
    return reason, f"pip install 'vit-export[{extra}]'"


def _provider(facts: Facts, provider: str, extra: str) -> Obstacle | None:
    """Why an execution provider is not active."""
    fact, runtime = find(facts, "provider", provider), find(facts, "provider", RUNTIME)
    if fact.usable:
        return None
    if runtime in facts:
        return runtime.value, "fix the fault first"
    if provider == TENSORRT and (conflict := tensorrt_conflict()):
        return conflict
    remedy = f"pip install 'vit-export[{extra}]'"
    if extra == "gpu" and find(facts, "package", "onnxruntime").usable:
        remedy = f"pip uninstall -y onnxruntime && {remedy}"
    return f"{provider}: {fact.value}", remedy


def _rtx_plugin(facts: Facts) -> Obstacle | None:
    if not supported_by_rtx(capability(facts)):
        reason = "TensorRT-RTX runs on compute capability 8.6, 8.9, and 12.0 or newer"
        return reason, "use --provider cuda"
    plugin = find(facts, "provider", RTX)
    return None if plugin.usable else (f"{RTX}: {plugin.value}", RTX_INSTALL)


def supported_by_rtx(gpu: tuple[int, int]) -> bool:
    """Return whether the plugin supports a compute capability; (0, 0), unknown, counts as yes."""
    return gpu == (0, 0) or gpu in RTX_CAPABILITIES or gpu >= (12, 0)


def _rtx_engines(facts: Facts, tensorrt: Obstacle, rtx: Obstacle | None) -> Obstacle | None:
    """Why engines of TensorRT-RTX do not run; without it, why those of TensorRT do not."""
    gpu = capability(facts)
    if not find(facts, "package", "tensorrt-rtx").usable:
        return tensorrt
    if gpu == (0, 0) or gpu in RTX_TARGETS:
        return rtx
    reason = f"TensorRT-RTX does not compile for compute capability {gpu[0]}.{gpu[1]}"
    return reason, tensorrt[1]

"""Abilities: what can be built and run here, and what makes the rest possible."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass

from vit_export.host.doctor.checks import CUDA, RTX, RUNTIME, TENSORRT, requirements
from vit_export.host.doctor.gpu import OLDEST_CAPABILITY, capability
from vit_export.host.doctor.types import Ability, Facts, find, has_gpu
from vit_export.host.nvidia import RTX_INSTALL, tensorrt_conflict, tensorrt_install

RTX_CAPABILITIES = ((8, 6), (8, 9))  # and from 12.0: tensorrt_rtx_provider_options.h of the plugin
# What TensorRT-RTX itself compiles engines for: its ComputeCapability.
RTX_TARGETS = ((7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1))


@dataclass(frozen=True)
class Obstacle:
    """Why something cannot be done, or only in part, and what changes that."""

    reason: str
    remedy: str
    partial: bool = False


def abilities(facts: Facts) -> tuple[Ability, ...]:
    """Return everything that vit-export does, and whether the facts allow it."""
    return tuple(_ability(facts, name, *entry) for name, entry in ABILITIES.items())


def _ability(
    facts: Facts, name: str, needs_gpu: bool, obstacle_of: Callable[[Facts], Obstacle | None]
) -> Ability:
    if needs_gpu and not has_gpu(facts):
        reason = f"no NVIDIA GPU: {find(facts, 'gpu', 'driver').value}"
        return Ability(name, possible=False, reason=reason)
    if (obstacle := obstacle_of(facts)) is None:
        return Ability(name, possible=True)
    return Ability(name, obstacle.partial, obstacle.reason, obstacle.remedy)


def _running_on_cpu(facts: Facts) -> Obstacle | None:
    return _provider(facts, "CPUExecutionProvider", "cpu")


def _reading_images(facts: Facts) -> Obstacle | None:
    return _packages(facts, "cpu", only=("pillow",))


def _running_on_cuda(facts: Facts) -> Obstacle | None:
    obstacle, gpu = _provider(facts, CUDA, "gpu"), capability(facts)
    if obstacle is None or not (0, 0) < gpu < OLDEST_CAPABILITY:
        return obstacle
    reason = (
        f"compute capability {_shown(gpu)} is older than {_shown(OLDEST_CAPABILITY)}, the oldest "
        "that CUDA 13 supports"
    )
    return Obstacle(reason, "use --provider cpu")


def _running_on_tensorrt(facts: Facts) -> Obstacle | None:
    obstacle = _provider(facts, TENSORRT, "gpu")
    if obstacle is None:
        return None
    if conflict := tensorrt_conflict():
        return Obstacle(conflict, tensorrt_install())
    if find(facts, "provider", CUDA).usable:
        return Obstacle(obstacle.reason, tensorrt_install())
    return obstacle


def _running_on_tensorrt_rtx(facts: Facts) -> Obstacle | None:
    if not supported_by_rtx(capability(facts)):
        reason = "TensorRT-RTX runs on compute capability 8.6, 8.9, and 12.0 or newer"
        return Obstacle(reason, "use --provider cuda")
    plugin = find(facts, "provider", RTX)
    return None if plugin.usable else Obstacle(f"{RTX}: {plugin.value}", RTX_INSTALL)


def _exporting(facts: Facts) -> Obstacle | None:
    return _packages(facts, "export") or _running_on_cpu(facts)  # the gate runs on the CPU


def _building_engines(facts: Facts) -> Obstacle | None:
    """TensorRT builds on the GPU it builds for; TensorRT-RTX needs none."""
    rtx = _packages(facts, "tensorrt-rtx")
    if not has_gpu(facts):
        return rtx
    here = _running_engines(facts)
    if here is None or rtx is not None:
        return here
    reason = f"for other GPUs only, with --compute-capability: {here.reason}"
    return Obstacle(reason, here.remedy, partial=True)


def _running_engines(facts: Facts) -> Obstacle | None:
    """Engines of TensorRT, or of TensorRT-RTX if it compiles for the GPU here."""
    tensorrt, gpu = _packages(facts, "tensorrt"), capability(facts)
    installed = {name: find(facts, "package", name).usable for name in ("tensorrt", "tensorrt-rtx")}
    if tensorrt is None or installed["tensorrt"] or not installed["tensorrt-rtx"]:
        return tensorrt
    if gpu == (0, 0) or gpu in RTX_TARGETS:
        return _packages(facts, "tensorrt-rtx")
    reason = f"TensorRT-RTX does not compile for compute capability {_shown(gpu)}"
    return Obstacle(reason, tensorrt.remedy)


ABILITIES: dict[str, tuple[bool, Callable[[Facts], Obstacle | None]]] = {  # name -> needs a GPU
    "run on the CPU": (False, _running_on_cpu),
    "read image files": (False, _reading_images),
    "run on CUDA": (True, _running_on_cuda),
    "run on TensorRT in ONNX Runtime": (True, _running_on_tensorrt),
    "run on TensorRT-RTX in ONNX Runtime": (True, _running_on_tensorrt_rtx),
    "export from torch": (False, _exporting),
    "build TensorRT engines": (False, _building_engines),
    "run TensorRT engines": (True, _running_engines),
}


def supported_by_rtx(gpu: tuple[int, int]) -> bool:
    """Return whether the plugin supports a compute capability; (0, 0), unknown, counts as yes."""
    return gpu == (0, 0) or gpu in RTX_CAPABILITIES or gpu >= (12, 0)


def _shown(gpu: tuple[int, int]) -> str:
    return f"{gpu[0]}.{gpu[1]}"


def _packages(facts: Facts, extra: str, only: tuple[str, ...] = ()) -> Obstacle | None:
    """What is missing of the packages of an extra, or of some of them."""
    remedy = f"pip install 'vit-export[{extra}]'"
    try:
        packages = only or tuple(requirement.name for requirement in requirements(extra))
    except importlib.metadata.PackageNotFoundError:
        reason = "vit-export itself is not installed, so what it needs is not known"
        return Obstacle(reason, remedy)
    missing = [package for package in packages if not find(facts, "package", package).usable]
    if not missing:
        return None
    return Obstacle("not installed, or another version: " + ", ".join(missing), remedy)


def _provider(facts: Facts, provider: str, extra: str) -> Obstacle | None:
    """Why an execution provider is not active."""
    fact = find(facts, "provider", provider)
    if fact.usable:
        return None
    broken = [fact.value for fact in facts if (fact.topic, fact.name) == ("provider", RUNTIME)]
    if broken:
        return Obstacle(broken[0], "fix the fault first")
    remedy = f"pip install 'vit-export[{extra}]'"
    if extra == "gpu" and find(facts, "package", "onnxruntime").usable:
        remedy = f"pip uninstall -y onnxruntime && {remedy}"
    return Obstacle(f"{provider}: {fact.value}", remedy)

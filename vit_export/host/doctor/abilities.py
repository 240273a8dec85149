"""Abilities: what can be built and run here, and what makes the rest possible."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Callable

from vit_export.host.doctor.checks import CUDA, RTX, RUNTIME, TENSORRT, requirements
from vit_export.host.doctor.gpu import OLDEST_CAPABILITY, capability
from vit_export.host.doctor.types import Ability, Facts, find, has_gpu
from vit_export.host.nvidia import RTX_INSTALL, tensorrt_conflict, tensorrt_install

RTX_CAPABILITIES = ((8, 6), (8, 9))  # and from 12.0: tensorrt_rtx_provider_options.h of the plugin
# What TensorRT-RTX itself compiles engines for: its ComputeCapability.
RTX_TARGETS = ((7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1))


def can_run_on_cpu(facts: Facts) -> Ability:
    """`validate`, and `predict` from arrays, with `--provider cpu`."""
    return _provider_ability(facts, "run on the CPU", "CPUExecutionProvider", "cpu")


def can_read_images(facts: Facts) -> Ability:
    """`predict` from image files."""
    return _package_ability(facts, "read image files", "cpu", packages=("pillow",))


def can_run_on_cuda(facts: Facts) -> Ability:
    """`--provider cuda`."""
    name, gpu = "run on CUDA", capability(facts)
    if not has_gpu(facts):
        return _no_gpu(facts, name)
    ability = _provider_ability(facts, name, CUDA, "gpu")
    if ability.possible or not (0, 0) < gpu < OLDEST_CAPABILITY:
        return ability
    reason = (
        f"compute capability {_shown(gpu)} is older than {_shown(OLDEST_CAPABILITY)}, the oldest "
        "that CUDA 13 supports"
    )
    return Ability(name, possible=False, reason=reason, remedy="use --provider cpu")


def can_run_on_tensorrt(facts: Facts) -> Ability:
    """`--provider tensorrt`: TensorRT inside ONNX Runtime."""
    name = "run on TensorRT in ONNX Runtime"
    if not has_gpu(facts):
        return _no_gpu(facts, name)
    ability = _provider_ability(facts, name, TENSORRT, "gpu")
    if ability.possible:
        return ability
    if conflict := tensorrt_conflict():
        return Ability(name, possible=False, reason=conflict, remedy=tensorrt_install())
    if find(facts, "provider", CUDA).usable:
        return dataclasses.replace(ability, remedy=tensorrt_install())
    return ability


def can_run_on_tensorrt_rtx(facts: Facts) -> Ability:
    """`--provider tensorrt-rtx`: the plugin, with either wheel of ONNX Runtime."""
    name = "run on TensorRT-RTX in ONNX Runtime"
    if not has_gpu(facts):
        return _no_gpu(facts, name)
    if not supported_by_rtx(capability(facts)):
        reason = "TensorRT-RTX runs on compute capability 8.6, 8.9, and 12.0 or newer"
        return Ability(name, possible=False, reason=reason, remedy="use --provider cuda")
    plugin = find(facts, "provider", RTX)
    if plugin.usable:
        return Ability(name, possible=True)
    return Ability(name, possible=False, reason=f"{RTX}: {plugin.value}", remedy=RTX_INSTALL)


def can_export(facts: Facts) -> Ability:
    """`onnx`: torch to ONNX, and the gate, which runs what was exported."""
    ability, cpu = _package_ability(facts, "export from torch", "export"), can_run_on_cpu(facts)
    if ability.possible and not cpu.possible:
        return dataclasses.replace(cpu, name=ability.name)
    return ability


def can_build_engines(facts: Facts) -> Ability:
    """`engine`: TensorRT builds on the GPU it builds for; TensorRT-RTX needs none."""
    name = "build TensorRT engines"
    rtx = _package_ability(facts, name, "tensorrt-rtx")
    if not has_gpu(facts):
        return rtx
    here = _engine_ability(facts, name)
    if here.possible or not rtx.possible:
        return here
    reason = f"for other GPUs only, with --compute-capability: {here.reason}"
    return dataclasses.replace(here, possible=True, reason=reason)


def can_run_engines(facts: Facts) -> Ability:
    """`.engine` files, without ONNX Runtime."""
    name = "run TensorRT engines"
    return _engine_ability(facts, name) if has_gpu(facts) else _no_gpu(facts, name)


ABILITIES: tuple[Callable[[Facts], Ability], ...] = (
    can_run_on_cpu,
    can_read_images,
    can_run_on_cuda,
    can_run_on_tensorrt,
    can_run_on_tensorrt_rtx,
    can_export,
    can_build_engines,
    can_run_engines,
)


def supported_by_rtx(gpu: tuple[int, int]) -> bool:
    """Return whether the plugin supports a compute capability; (0, 0), unknown, counts as yes."""
    return gpu == (0, 0) or gpu in RTX_CAPABILITIES or gpu >= (12, 0)


def _engine_ability(facts: Facts, name: str) -> Ability:
    """Engines for the GPU here: of TensorRT, or of TensorRT-RTX if it compiles for that GPU."""
    tensorrt = _package_ability(facts, name, "tensorrt")
    gpu = capability(facts)
    if (
        find(facts, "package", "tensorrt").usable
        or not find(facts, "package", "tensorrt-rtx").usable
    ):
        return tensorrt
    if gpu == (0, 0) or gpu in RTX_TARGETS:
        return _package_ability(facts, name, "tensorrt-rtx")
    reason = f"TensorRT-RTX does not compile for compute capability {_shown(gpu)}"
    return dataclasses.replace(tensorrt, reason=reason)


def _shown(gpu: tuple[int, int]) -> str:
    return f"{gpu[0]}.{gpu[1]}"


def _no_gpu(facts: Facts, name: str) -> Ability:
    reason = f"no NVIDIA GPU: {find(facts, 'gpu', 'driver').value}"
    return Ability(name, possible=False, reason=reason)


def _package_ability(
    facts: Facts, name: str, extra: str, *, packages: tuple[str, ...] = ()
) -> Ability:
    """What needs the packages of an extra, or some of them."""
    remedy = f"pip install 'vit-export[{extra}]'"
    try:
        packages = packages or tuple(requirement.name for requirement in requirements(extra))
    except importlib.metadata.PackageNotFoundError:
        reason = "vit-export itself is not installed, so what it needs is not known"
        return Ability(name, possible=False, reason=reason, remedy=remedy)
    missing = [package for package in packages if not find(facts, "package", package).usable]
    if not missing:
        return Ability(name, possible=True)
    reason = "not installed, or another version: " + ", ".join(missing)
    return Ability(name, possible=False, reason=reason, remedy=remedy)


def _provider_ability(facts: Facts, name: str, provider: str, extra: str) -> Ability:
    fact = find(facts, "provider", provider)
    if fact.usable:
        return Ability(name, possible=True)
    broken = [fact.value for fact in facts if (fact.topic, fact.name) == ("provider", RUNTIME)]
    if broken:
        return Ability(name, possible=False, reason=broken[0], remedy="fix the fault first")
    remedy = f"pip install 'vit-export[{extra}]'"
    if extra == "gpu" and find(facts, "package", "onnxruntime").usable:
        remedy = f"pip uninstall -y onnxruntime && {remedy}"
    return Ability(name, possible=False, reason=f"{provider}: {fact.value}", remedy=remedy)

"""What can be built and run here, and what would change that."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from vit_export.host.doctor.driver import OLDEST_CAPABILITY, capability
from vit_export.host.doctor.packages import EXTRAS
from vit_export.host.doctor.runtimes import CUDA, RTX, RUNTIME, TENSORRT
from vit_export.host.doctor.types import Ability, Facts, find, has_gpu
from vit_export.host.nvidia import RTX_INSTALL, tensorrt_conflict, tensorrt_install

RTX_CAPABILITIES = ((8, 6), (8, 9))  # and 12.0 on: tensorrt_rtx_provider_options.h of the plugin
# What TensorRT-RTX itself compiles engines for: its ComputeCapability.
RTX_TARGETS = ((7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1))


def can_run_on_cpu(facts: Facts) -> Ability:
    """`validate`, and `predict` from arrays, with `--provider cpu`."""
    return _provider_ability(facts, "run on the CPU", "CPUExecutionProvider", "cpu")


def can_read_images(facts: Facts) -> Ability:
    """`predict` from image files."""
    return _package_ability(facts, "read image files", {"pillow": ""}, "cpu")


def can_run_on_cuda(facts: Facts) -> Ability:
    """`--provider cuda`."""
    name = "run on CUDA"
    if not has_gpu(facts):
        return _no_gpu(facts, name)
    ability, found = _provider_ability(facts, name, CUDA, "gpu"), capability(facts)
    if not ability.possible and (0, 0) < found < OLDEST_CAPABILITY:
        reason = (
            f"compute capability {_number(found)} is older than {_number(OLDEST_CAPABILITY)}, "
            "the oldest that CUDA 13 has"
        )
        return Ability(name, possible=False, reason=reason, remedy="take --provider cpu")
    return ability


def can_run_on_tensorrt(facts: Facts) -> Ability:
    """`--provider tensorrt`: TensorRT inside ONNX Runtime."""
    name = "run on TensorRT in ONNX Runtime"
    if not has_gpu(facts):
        return _no_gpu(facts, name)
    ability = _provider_ability(facts, name, TENSORRT, "gpu")
    if ability.possible:
        return ability
    if conflict := tensorrt_conflict():
        reason, _, remedy = conflict.rpartition(": ")
        return Ability(name, possible=False, reason=reason, remedy=remedy)
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
        return Ability(name, possible=False, reason=reason, remedy="take --provider cuda")
    fact = find(facts, "provider", RTX)
    if fact.usable:
        return Ability(name, possible=True)
    return Ability(name, possible=False, reason=f"{RTX}: {fact.value}", remedy=RTX_INSTALL)


def can_run_engines(facts: Facts) -> Ability:
    """`.engine` files, without ONNX Runtime."""
    name = "run TensorRT engines"
    return _engine_ability(facts, name) if has_gpu(facts) else _no_gpu(facts, name)


def can_export(facts: Facts) -> Ability:
    """`onnx`: torch to ONNX, and the gate, which runs what was exported."""
    ability = _package_ability(facts, "export from torch", EXTRAS["export"], "export")
    cpu = can_run_on_cpu(facts)
    if ability.possible and not cpu.possible:
        return dataclasses.replace(cpu, name=ability.name)
    return ability


def can_build_engines(facts: Facts) -> Ability:
    """`engine`: TensorRT builds on the GPU it builds for; TensorRT-RTX needs none."""
    name = "build TensorRT engines"
    rtx = _package_ability(facts, name, EXTRAS["tensorrt-rtx"], "tensorrt-rtx")
    if not has_gpu(facts):
        return rtx
    here = _engine_ability(facts, name)
    if here.possible or not rtx.possible:
        return here
    reason = f"for other GPUs only, with --compute-capability: {here.reason}"
    return dataclasses.replace(here, possible=True, reason=reason)


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


def supported_by_rtx(found: tuple[int, int]) -> bool:
    """Whether the plugin supports a compute capability; (0, 0), unknown, is given a try."""
    return found == (0, 0) or found in RTX_CAPABILITIES or found >= (12, 0)


def _engine_ability(facts: Facts, name: str) -> Ability:
    """Engines for the GPU that is here: of TensorRT, or of TensorRT-RTX if it compiles for it."""
    tensorrt = _package_ability(facts, name, EXTRAS["tensorrt"], "tensorrt")
    flavours = ("tensorrt", "tensorrt-rtx")
    has_tensorrt, has_rtx = (find(facts, "package", flavour).usable for flavour in flavours)
    if has_tensorrt or not has_rtx:
        return tensorrt
    found = capability(facts)
    if found == (0, 0) or found in RTX_TARGETS:
        return _package_ability(facts, name, EXTRAS["tensorrt-rtx"], "tensorrt-rtx")
    reason = f"TensorRT-RTX does not compile for compute capability {_number(found)}"
    return dataclasses.replace(tensorrt, reason=reason)


def _number(found: tuple[int, int]) -> str:
    return f"{found[0]}.{found[1]}"


def _no_gpu(facts: Facts, name: str) -> Ability:
    reason = f"no NVIDIA GPU: {find(facts, 'gpu', 'driver').value}"
    return Ability(name, possible=False, reason=reason)


def _package_ability(facts: Facts, name: str, packages: dict[str, str], extra: str) -> Ability:
    lacking = [p for p in packages if not find(facts, "package", p).usable]
    if not lacking:
        return Ability(name, possible=True)
    reason = "not installed or too old: " + ", ".join(lacking)
    return Ability(name, possible=False, reason=reason, remedy=f"pip install 'vit-export[{extra}]'")


def _provider_ability(facts: Facts, name: str, provider: str, extra: str) -> Ability:
    fact = find(facts, "provider", provider)
    if fact.usable:
        return Ability(name, possible=True)
    broken = [fact.value for fact in facts if (fact.topic, fact.name) == ("provider", RUNTIME)]
    if broken:
        return Ability(name, possible=False, reason=broken[0], remedy="mend the fault first")
    remedy = f"pip install 'vit-export[{extra}]'"
    if extra == "gpu" and find(facts, "package", "onnxruntime").usable:
        remedy = f"pip uninstall -y onnxruntime && {remedy}"
    return Ability(name, possible=False, reason=f"{provider}: {fact.value}", remedy=remedy)

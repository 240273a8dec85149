"""GPUs that an engine is compiled for."""

import re
from typing import Any

from packaging.version import Version

from vit_export.artifact.engine_sidecar import Gpu
from vit_export.engine.settings import EngineSettings
from vit_export.errors import EngineError, UsageError
from vit_export.runtime.tensorrt.backend import Backend

OLDEST_BF16 = Version("8.0")  # compute capability


def targets_of(backend: Backend, settings: EngineSettings, gpu: Gpu | None) -> tuple[str, ...]:
    """Return the compute capabilities to compile for: those of the settings, or the GPU's."""
    targets = (_rtx_targets if backend.is_rtx else _here)(backend, settings, gpu)
    if gpu is None and (settings.refit or settings.strip):
        raise EngineError(
            f"--{'strip' if settings.strip else 'refit'}: refittable and stripped engines are "
            "compiled on the GPU, and there is none here"
        )
    too_old = [target for target in targets if Version(target) < OLDEST_BF16]
    if settings.precision == "bf16" and too_old:
        raise UsageError(
            f"--precision bf16: compute capability {too_old[0]} has no bfloat16, which needs "
            f"{OLDEST_BF16} or newer",
            hint="use --precision fp16",
        )
    return targets


def _here(backend: Backend, settings: EngineSettings, gpu: Gpu | None) -> tuple[str, ...]:
    """Return the GPU of this machine, which is the only one that TensorRT builds for."""
    here = gpu.compute_capability if gpu is not None else "none"
    if others := [target for target in settings.compute_capabilities if target != here]:
        raise UsageError(
            f"--compute-capability {others[0]}: TensorRT builds for this machine's GPU ({here})",
            hint="build on a machine with such a GPU, or use --hardware-compatibility "
            "ampere-plus, or --backend tensorrt-rtx, which builds for other GPUs",
        )
    if gpu is None:
        raise EngineError(
            f"{backend.name} {backend.version} builds on the GPU that runs the engine, and there "
            "is none here (or no driver)",
            hint="--backend tensorrt-rtx builds without a GPU",
        )
    return (here,)


def _rtx_targets(backend: Backend, settings: EngineSettings, gpu: Gpu | None) -> tuple[str, ...]:
    known = rtx_capabilities(backend)
    here = (gpu.compute_capability,) if gpu is not None else ()
    targets = tuple(dict.fromkeys(settings.compute_capabilities)) or here
    if not targets:
        raise UsageError(
            "there is no GPU here, so the GPU that will run the engine is not known",
            hint=f"name it: --compute-capability 8.9 (known: {', '.join(known)}; several may be "
            "given)",
        )
    if unknown := [target for target in targets if target not in known]:
        raise UsageError(
            f"--compute-capability {unknown[0]}: TensorRT-RTX {backend.version} compiles for "
            f"{', '.join(known)} only",
            hint="use --backend tensorrt for other GPUs",
        )
    return targets


def rtx_capabilities(backend: Backend) -> dict[str, Any]:
    """Return what TensorRT-RTX compiles for, e.g. `{"8.9": ComputeCapability.SM89}`."""
    members = backend.trt.ComputeCapability.__members__
    matches = {name: re.fullmatch(r"SM(\d+)(\d)", name) for name in members}
    return {f"{m[1]}.{m[2]}": members[name] for name, m in matches.items() if m is not None}

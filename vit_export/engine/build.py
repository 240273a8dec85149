"""A network to a serialized engine: profiles, limits, flags, and the proof around them."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.version import Version

from vit_export.artifact.engine_sidecar import Gpu, Profile
from vit_export.artifact.manifest import Manifest
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.engine.monitor import interruptible, monitor
from vit_export.engine.network import Network, allow_plain_attention, check_same_signature, parse
from vit_export.engine.options import HARDWARE_COMPATIBILITY, BuildOptions
from vit_export.engine.profiles import profiles_of
from vit_export.engine.proof import product_types, prove_network, prove_plan
from vit_export.engine.source import Weights, wide_products_allowed
from vit_export.engine.timing_cache import load_cache, save_cache
from vit_export.errors import EngineError, UsageError
from vit_export.progress import Progress, silent
from vit_export.runtime.tensorrt.backend import Backend, Messages

FLAGS = {  # fields of BuildOptions -> flags of the builder
    "version_compatible": "VERSION_COMPATIBLE",
    "weight_streaming": "WEIGHT_STREAMING",
    "refit": "REFIT",
    "strip": "STRIP_PLAN",
}
BF16_SINCE = Version("8.0")  # compute capability
NOT_SELF_CONSISTENT = "not self-consistent"  # TensorRT's words of a profile, in a warning


@dataclass(frozen=True, kw_only=True)
class Built:
    """What was built.

    Attributes:
        plan_bytes: Size of the plan.
        profiles: Optimization profiles; empty for fixed shapes.
        compute_capabilities: GPUs that it was compiled for.
        product_types: Number of products by type, in the network.
        size_note: What the size of the plan shows.
        warnings: What TensorRT warned of.
    """

    plan_bytes: int
    profiles: tuple[Profile, ...]
    compute_capabilities: tuple[str, ...]
    product_types: dict[str, int]
    size_note: str
    warnings: tuple[str, ...]


def build_engine(
    backend: Backend,
    file: OnnxFile,
    manifest: Manifest,
    destination: Path,
    options: BuildOptions,
    *,
    gpu: Gpu | None = None,
    progress: Progress = silent,
) -> Built:
    """Build an engine and write its plan.

    Args:
        backend: TensorRT or TensorRT-RTX.
        file: An .onnx file in the precision that is asked for.
        manifest: What it says of itself, as `check_source` gives it.
        destination: File to write.
        options: What is asked for.
        gpu: The GPU that is at hand.
        progress: Told how far the build is.

    Raises:
        EngineError: TensorRT cannot build it, or builds something else.
        UsageError: What was asked for cannot be.
    """
    name = file.path.name
    targets = targets_of(backend, options, gpu)
    profiles = profiles_of(manifest.inputs, options.batches)
    progress(f"{backend.name} {backend.version} reads {name}")
    network = parse(backend, file.path)
    check_same_signature(network, manifest, name)
    types = product_types(network)
    conversion = manifest.conversion
    prove_network(
        types,
        options.precision,
        wide_allowed=wide_products_allowed(manifest, file),
        narrow_at_least=conversion.narrowed if conversion is not None else 1,
    )
    allow_plain_attention(backend, network)
    with backend.collect_messages() as said:
        config = _config(backend, network, options, profiles, targets)
        if said.errors:
            raise EngineError(
                f"{backend.name} {backend.version} does not take what was asked for: {said.reason()}"
            )
        if options.timing_cache is not None:
            load_cache(config, options.timing_cache)
        cancelled = threading.Event()
        watching = config.progress_monitor = monitor(backend, progress, cancelled)
        plan = interruptible(
            lambda: network.builder.build_serialized_network(network.definition, config), cancelled
        )
        if watching.failure is not None:
            raise watching.failure
        if plan is None:
            raise EngineError(_failed(backend, name, said.reason(), options))
        _check_inconsistent(backend, said)
        if options.timing_cache is not None:
            save_cache(config, options.timing_cache)
    progress("build the engine", 100, 100)  # TensorRT leaves its last step unsaid
    destination.write_bytes(memoryview(plan))
    size_note = prove_plan(
        plan.nbytes,
        Weights.of(file),
        options.precision,
        products=sum(types.values()),
        profiles=len(profiles),
        stripped=options.strip,
        lean_runtime=options.version_compatible,
    )
    return Built(
        plan_bytes=plan.nbytes,
        profiles=profiles,
        compute_capabilities=targets,
        product_types=types,
        size_note=size_note,
        warnings=tuple(dict.fromkeys(said.warnings)),
    )


def _check_inconsistent(backend: Backend, said: Messages) -> None:
    """Raise EngineError where TensorRT built, but warned that a profile cannot be served."""
    for warning in said.warnings:
        if NOT_SELF_CONSISTENT in warning:
            raise EngineError(
                f"{backend.name} cannot serve all of --batch: {' '.join(warning.split())}; ask "
                "for smaller batches"
            )


def _failed(backend: Backend, name: str, why: str, options: BuildOptions) -> str:
    text = f"{backend.name} {backend.version} cannot build {name}: {why}"
    if options.workspace_mib is not None and "workspace" in why:
        text += f"; --workspace-mib {options.workspace_mib} is too little"
    return text


def targets_of(backend: Backend, options: BuildOptions, gpu: Gpu | None) -> tuple[str, ...]:
    """GPUs to compile for, where nothing stands against it that can be told before a build.

    Raises:
        EngineError: It takes a GPU, and there is none here.
        UsageError: Nobody says which GPU, or the engine that is asked for cannot be for it.
    """
    targets = compute_capabilities(backend, options.compute_capabilities, gpu)
    if gpu is None and (options.refit or options.strip):
        raise EngineError(
            f"--{'strip' if options.strip else 'refit'}: refittable and stripped engines are "
            "compiled on the GPU, and there is none here"
        )
    too_old = [target for target in targets if Version(target) < BF16_SINCE]
    if options.precision == "bf16" and too_old:
        raise UsageError(
            f"--precision bf16: compute capability {too_old[0]} has no bfloat16, which came with "
            f"{BF16_SINCE}; take fp16"
        )
    return targets


def compute_capabilities(
    backend: Backend, asked: Sequence[str], gpu: Gpu | None
) -> tuple[str, ...]:
    """GPUs to compile for: those that were asked for, or the one here.

    Raises:
        EngineError: TensorRT builds on the GPU that an engine is for, and there is none.
        UsageError: Nobody says which, or the backend cannot compile for them.
    """
    if not backend.is_rtx:
        here = gpu.compute_capability if gpu is not None else "none"
        if strays := [word for word in asked if word != here]:
            raise UsageError(
                f"--compute-capability {strays[0]}: TensorRT builds for the GPU that is at hand "
                f"({here}); build there, or give --hardware-compatibility ampere-plus, or "
                "--backend tensorrt-rtx, which builds for others"
            )
        if gpu is None:
            raise EngineError(
                f"{backend.name} {backend.version} builds on the GPU that runs the engine, and "
                "there is none here (or no driver); --backend tensorrt-rtx builds without"
            )
        return (here,)
    known = _rtx_capabilities(backend)
    if not asked and gpu is None:
        raise UsageError(
            "there is no GPU here, so say which one the engine is for: --compute-capability 8.9 "
            f"(known: {', '.join(known)}; several may be given)"
        )
    wanted = tuple(dict.fromkeys(asked)) or (gpu.compute_capability if gpu is not None else "",)
    if strays := [word for word in wanted if word not in known]:
        raise UsageError(
            f"--compute-capability {strays[0]}: TensorRT-RTX {backend.version} compiles for "
            f"{', '.join(known)} only; for other GPUs take --backend tensorrt"
        )
    return wanted


def _rtx_capabilities(backend: Backend) -> dict[str, Any]:
    """Compute capabilities that TensorRT-RTX names, e.g. `{"8.9": ComputeCapability.SM89}`."""
    members = backend.trt.ComputeCapability.__members__
    matches = {name: re.fullmatch(r"SM(\d+)(\d)", name) for name in members}
    return {f"{m[1]}.{m[2]}": members[name] for name, m in matches.items() if m is not None}


def _config(
    backend: Backend,
    network: Network,
    options: BuildOptions,
    profiles: Sequence[Profile],
    targets: Sequence[str],
) -> Any:
    trt = backend.trt
    config = network.builder.create_builder_config()
    for profile in profiles:
        made = network.builder.create_optimization_profile()
        for name, ranges in profile.items():
            made.set_shape(name, ranges.min, ranges.opt, ranges.max)
        if config.add_optimization_profile(made) < 0:
            raise EngineError(f"{backend.name} does not take the profile {dict(profile)}")
    config.clear_flag(trt.BuilderFlag.TF32)  # 10 bits of 23: fp32 would be no fp32
    for field, flag in FLAGS.items():
        if getattr(options, field):
            config.set_flag(getattr(trt.BuilderFlag, flag))
    if options.strip and not options.refit:  # weights of the same file, and no others
        config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # what the inspector reads
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if options.builder_level is not None:
        config.builder_optimization_level = options.builder_level
    if options.hardware_compatibility != "none":
        level, _ = HARDWARE_COMPATIBILITY[options.hardware_compatibility]
        if not hasattr(trt.HardwareCompatibilityLevel, level):
            raise UsageError(
                f"--hardware-compatibility {options.hardware_compatibility}: TensorRT "
                f"{backend.version} does not know it yet"
            )
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
    if backend.is_rtx:
        known = _rtx_capabilities(backend)
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            if not config.set_compute_capability(known[target], index):
                raise EngineError(f"{backend.name} cannot compile for compute capability {target}")
    return config

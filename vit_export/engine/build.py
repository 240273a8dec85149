"""Build the plan of an engine, and check its precision."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_export.artifact.engine_sidecar import Gpu, Profile
from vit_export.artifact.manifest import Manifest
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.engine.monitor import interruptible, monitor
from vit_export.engine.network import Network, allow_plain_attention, check_signature, parse
from vit_export.engine.profiles import profiles_of
from vit_export.engine.proof import check_network, check_plan_size, product_types
from vit_export.engine.settings import HARDWARE_COMPATIBILITY, SWITCHES, EngineSettings
from vit_export.engine.source import Weights, wide_products_allowed
from vit_export.engine.targets import rtx_capabilities, targets_of
from vit_export.engine.timing_cache import load_cache, save_cache
from vit_export.errors import EngineError, UsageError
from vit_export.progress import Progress, silent
from vit_export.runtime.tensorrt.backend import Backend

NOT_SELF_CONSISTENT = "not self-consistent"  # TensorRT's words for a profile, in a warning


@dataclass(frozen=True, kw_only=True)
class BuiltPlan:
    """A plan, and what is known from its build."""

    plan_bytes: int
    profiles: tuple[Profile, ...]  # empty for fixed shapes
    compute_capabilities: tuple[str, ...]  # GPUs that it was compiled for
    product_types: dict[str, int]  # number of matrix products of the network, by type
    size_note: str  # what the size of the plan shows about its precision
    warnings: tuple[str, ...]  # TensorRT's


def build_plan(
    backend: Backend,
    file: OnnxFile,
    manifest: Manifest,
    destination: Path,
    settings: EngineSettings,
    *,
    gpu: Gpu | None = None,
    progress: Progress = silent,
) -> BuiltPlan:
    """Build an engine and write its plan.

    Args:
        backend: TensorRT or TensorRT-RTX.
        file: An .onnx file in the precision of the settings.
        manifest: Its manifest.
        destination: File to write.
        settings: How to build.
        gpu: The GPU of this machine; `None` without one.
        progress: Called with the current step and its progress.

    Raises:
        EngineError: TensorRT cannot build it, or builds another precision.
        UsageError: The settings cannot be met.
    """
    name, version = file.path.name, f"{backend.name} {backend.version}"
    targets = targets_of(backend, settings, gpu)
    profiles = profiles_of(manifest.inputs, settings.batches)
    progress(f"{version} reads {name}")
    network = parse(backend, file.path)
    check_signature(network, manifest, name)
    types = product_types(network)
    conversion = manifest.conversion
    check_network(
        types,
        settings.precision,
        wide_allowed=wide_products_allowed(manifest, file),
        narrow_at_least=conversion.narrowed if conversion is not None else 1,
    )
    allow_plain_attention(backend, network)
    with backend.collect_messages() as messages:
        config = _config(backend, network, settings, profiles, targets)
        if messages.errors:
            raise EngineError(f"{version} refuses these settings: {messages.reason()}")
        if settings.timing_cache is not None:
            load_cache(config, settings.timing_cache)
        cancelled = threading.Event()
        config.progress_monitor = build_monitor = monitor(backend, progress, cancelled)
        plan = interruptible(
            lambda: network.builder.build_serialized_network(network.definition, config), cancelled
        )
        if build_monitor.failure is not None:
            raise build_monitor.failure
        if plan is None:
            hint = ""
            if settings.workspace_mib is not None and "workspace" in messages.reason():
                hint = f"--workspace-mib {settings.workspace_mib} is too little"
            raise EngineError(f"{version} cannot build {name}: {messages.reason()}", hint=hint)
        for warning in messages.warnings:
            if NOT_SELF_CONSISTENT in warning:
                raise EngineError(
                    f"{version} cannot accept all batches of --batch: {' '.join(warning.split())}",
                    hint="use smaller batches",
                )
        if settings.timing_cache is not None:
            save_cache(config, settings.timing_cache)
    progress("build the engine", 100, 100)  # TensorRT does not report its last step
    destination.write_bytes(memoryview(plan))
    size_note = check_plan_size(
        plan.nbytes,
        Weights.of(file),
        settings,
        products=sum(types.values()),
        profiles=len(profiles),
    )
    return BuiltPlan(
        plan_bytes=plan.nbytes,
        profiles=profiles,
        compute_capabilities=targets,
        product_types=types,
        size_note=size_note,
        warnings=tuple(dict.fromkeys(messages.warnings)),
    )


def _config(
    backend: Backend,
    network: Network,
    settings: EngineSettings,
    profiles: Sequence[Profile],
    targets: Sequence[str],
) -> Any:
    trt = backend.trt
    config = network.builder.create_builder_config()
    for shapes_by_name in profiles:
        optimization_profile = network.builder.create_optimization_profile()
        for name, shapes in shapes_by_name.items():
            optimization_profile.set_shape(name, shapes.min, shapes.opt, shapes.max)
        if config.add_optimization_profile(optimization_profile) < 0:
            raise EngineError(f"{backend.name} refuses the profile {dict(shapes_by_name)}")
    config.clear_flag(trt.BuilderFlag.TF32)  # it has 10 bits of mantissa instead of 23
    for field, (flag, _) in SWITCHES.items():
        if getattr(settings, field):
            config.set_flag(getattr(trt.BuilderFlag, flag))
    if settings.strip and not settings.refit:  # with weights of the same file only
        config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the inspector
    if settings.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib << 20)
    if settings.builder_level is not None:
        config.builder_optimization_level = settings.builder_level
    if settings.hardware_compatibility != "none":
        level, _ = HARDWARE_COMPATIBILITY[settings.hardware_compatibility]
        if not hasattr(trt.HardwareCompatibilityLevel, level):
            raise UsageError(
                f"--hardware-compatibility {settings.hardware_compatibility}: TensorRT "
                f"{backend.version} does not have it yet"
            )
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
    if backend.is_rtx:
        capabilities = rtx_capabilities(backend)
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            if not config.set_compute_capability(capabilities[target], index):
                raise EngineError(f"{backend.name} cannot compile for compute capability {target}")
    return config

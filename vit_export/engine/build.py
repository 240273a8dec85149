"""Build the plan of an engine, with progress and Ctrl-C, and check its precision.

TensorRT times kernels on the GPU, for minutes. Builds share the timings in a file, the timing
cache: each reads it when it starts, and merges its own into it when it ends.
"""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_export.artifact.engine_sidecar import Gpu, Profile
from vit_export.artifact.manifest import Manifest
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.open_file import replace_file
from vit_export.engine.network import Network, allow_plain_attention, check_signature, parse
from vit_export.engine.proof import check_network, plan_size, product_types, weight_bytes
from vit_export.engine.settings import (
    HARDWARE_COMPATIBILITY,
    SWITCHES,
    EngineSettings,
    profiles_of,
    rtx_capabilities,
    targets_of,
)
from vit_export.errors import EngineError, OutputError, UsageError
from vit_export.progress import Progress, silent
from vit_export.runtime.tensorrt.backend import Backend

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

POLL_S = 0.1  # how soon the waiting thread notices Ctrl-C
NOT_SELF_CONSISTENT = "not self-consistent"  # TensorRT's words for a profile, in a warning


@dataclass(frozen=True, kw_only=True)
class BuiltPlan:
    """A plan, and what is known from its build."""

    profiles: tuple[Profile, ...]  # empty for fixed shapes
    compute_capabilities: tuple[str, ...]  # GPUs that it was compiled for
    product_types: dict[str, int]  # number of matrix products of the network, by type
    size_note: str  # what the size of the plan shows about its precision
    size_fits: bool  # whether that is the precision of the settings
    warnings: tuple[str, ...]  # TensorRT's


def build_plan(
    backend: Backend,
    file: OnnxFile,
    manifest: Manifest,
    destination: Path,
    settings: EngineSettings,
    *,
    gpu: Gpu | None = None,
    device: int | None = None,
    progress: Progress = silent,
) -> BuiltPlan:
    """Build an engine of a file in the precision of the settings, and write its plan.

    `gpu` is the one that this thread uses, and `device` its number; `None` without one.
    """
    name, version = file.path.name, f"{backend.name} {backend.version}"
    targets = targets_of(backend, settings, gpu)
    profiles = profiles_of(manifest.inputs, settings.batches)
    progress(f"{version} reads {name}")
    network = parse(backend, file.path)
    check_signature(network, manifest, name)
    types = product_types(network)
    conversion = manifest.conversion
    # The conversion leaves products in float32 whose weights do not fit; some GPUs have no BF16
    # kernel for a convolution.
    left = conversion.planned - conversion.narrowed if conversion is not None else 0
    convolutions = file.op_counts.get("Conv", 0) if manifest.precision == "bf16" else 0
    check_network(
        types,
        settings.precision,
        wide_allowed=left + convolutions,
        narrow_at_least=max(1, conversion.narrowed if conversion is not None else 1),
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
            lambda: network.builder.build_serialized_network(network.definition, config),
            cancelled,
            device=device,
        )
        if build_monitor.failure is not None:
            raise build_monitor.failure
        if plan is None:
            little = settings.workspace_mib is not None and "workspace" in messages.reason()
            hint = f"--workspace-mib {settings.workspace_mib} is too little" if little else ""
            raise EngineError(f"{version} cannot build {name}: {messages.reason()}", hint=hint)
        if refused := [text for text in messages.warnings if NOT_SELF_CONSISTENT in text]:
            raise EngineError(
                f"{version} cannot accept all batches of --batch: {' '.join(refused[0].split())}",
                hint="use smaller batches",
            )
        if settings.timing_cache is not None:
            save_cache(config, settings.timing_cache)
    progress("build the engine", 100, 100)  # TensorRT does not report its last step
    destination.write_bytes(memoryview(plan))
    kernels = sum(types.values()) * max(len(profiles), 1)
    size_note, size_fits = plan_size(plan.nbytes, weight_bytes(file), settings, kernels=kernels)
    return BuiltPlan(
        profiles=profiles,
        compute_capabilities=targets,
        product_types=types,
        size_note=size_note,
        size_fits=size_fits,
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
        name = settings.hardware_compatibility
        level = getattr(trt.HardwareCompatibilityLevel, HARDWARE_COMPATIBILITY[name][0], None)
        if level is None:
            raise UsageError(
                f"--hardware-compatibility {name}: TensorRT {backend.version} does not have it yet"
            )
        config.hardware_compatibility_level = level
    if backend.is_rtx:
        capabilities = rtx_capabilities(backend)
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            if not config.set_compute_capability(capabilities[target], index):
                raise EngineError(f"{backend.name} cannot compile for compute capability {target}")
    return config


def monitor(backend: Backend, progress: Progress, cancelled: threading.Event) -> Any:
    """Return an `IProgressMonitor` that calls `progress`, and stops the build on `cancelled`.

    An exception of `progress` stops the build too. TensorRT reports that as a cancellation, so
    the exception is kept as `failure`.
    """

    class Monitor(backend.trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        """Called by TensorRT from any of its threads, with phases that contain each other."""

        def __init__(self) -> None:
            backend.trt.IProgressMonitor.__init__(self)
            self.failure: Exception | None = None
            self._lock = threading.Lock()
            self._open: dict[str, tuple[int, int]] = {}  # outer phase first -> steps, done and all
            self._furthest = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._open[phase_name] = 0, max(num_steps, 1)

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self._open.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                if phase_name in self._open:
                    self._open[phase_name] = step + 1, self._open[phase_name][1]
                share = 0.0
                for done, total in reversed(self._open.values()):
                    share = min((done + share) / total, 1.0)
                self._furthest = max(self._furthest, share)
                percent = round(100 * self._furthest)
            try:
                progress("build the engine", percent, 100)
            except Exception as error:  # noqa: BLE001  (`build_plan` raises it again)
                self.failure = error
                return False
            return not cancelled.is_set()

    return Monitor()


def interruptible(
    build: Callable[[], Any], cancelled: threading.Event, *, device: int | None = None
) -> Any:
    """Run a build in another thread, so that this thread receives Ctrl-C.

    A new thread uses GPU 0, so that one changes to the GPU of this number; `None` without one.
    Python handles signals between bytecodes of the main thread, and a build is one call. On an
    interrupt (or a SIGTERM that raises) `cancelled` is set, TensorRT stops at its next step, and
    then the interrupt is raised.
    """
    with futures.ThreadPoolExecutor(1, thread_name_prefix="build") as pool:
        # first something short: the pool waits for no thread whose start was interrupted
        pool.submit(_use_gpu, device).result()
        try:
            future = pool.submit(build)
            while not futures.wait([future], timeout=POLL_S).done:
                pass
        except BaseException:  # leaving the pool waits until TensorRT has stopped
            cancelled.set()
            raise
    return future.result()


def _use_gpu(device: int | None) -> None:
    if device is not None:
        from cuda.core import Device

        Device(device).set_current()


def cache_key(backend: Backend, gpu: Gpu | None) -> str:
    """Return the version and GPU that a cache is valid for; TensorRT checks the same."""
    return "" if backend.is_rtx or gpu is None else f"{backend.name} {backend.version}, {gpu}"


def load_cache(config: Any, path: Path) -> None:
    """Load the timings of a file, if there is one, into a builder's configuration."""
    with locked(path):
        data = path.read_bytes() if path.exists() else b""
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, False):
        raise OutputError(
            f"{path}: is no timing cache of this TensorRT and this GPU, or is damaged",
            hint="name another file with --timing-cache",
        )


def save_cache(config: Any, path: Path) -> None:
    """Merge a builder's timings into a file."""
    cache = config.get_timing_cache()
    with locked(path):
        if path.exists():
            current = config.create_timing_cache(path.read_bytes())
            if current is None or not cache.combine(current, False):
                raise OutputError(f"{path}: was replaced during the build by an incompatible cache")
        replace_file(path, bytes(memoryview(cache.serialize())))


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, `PATH.lock`; wait while another process holds it."""
    try:
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        stream = path.with_name(path.name + ".lock").open("ab")
    except OSError as error:
        raise OutputError(
            f"cannot lock {path}: {error.strerror or error}",
            hint="name another file with --timing-cache",
        ) from error
    with stream:
        if sys.platform == "win32":
            msvcrt.locking(stream.fileno(), msvcrt.LK_LOCK, 1)
        else:
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield  # closing the file releases the lock

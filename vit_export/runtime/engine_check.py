"""Open engines: rebuild one that does not fit this machine, measure one that was never measured.

An engine that was built without its GPU has `passed: null` in its certificate. The first load on
a GPU measures it against the golden file, and the sidecar records the plan that passed, the GPU
and the TensorRT version. Another GPU or version measures again.
"""

import contextlib
import functools
import os
from collections.abc import Sequence
from pathlib import Path

from cuda.core import Device

from vit_export.artifact.engine_sidecar import Check, Sidecar, sidecar_path
from vit_export.artifact.golden import Golden, find_golden
from vit_export.errors import EngineError, GateError
from vit_export.gate.validate import Comparison, compare
from vit_export.host.child_process import run_module
from vit_export.runtime.tensorrt.backend import load_backend
from vit_export.runtime.tensorrt.plan import IncompatibleEngineError, find_source
from vit_export.runtime.tensorrt.runner import TrtRunner

_passed_in_this_process: set[Check] = set()


def open_engine(
    path: Path,
    *,
    provider: str | Sequence[str] = "auto",
    device: int | None = None,
    rebuild: bool = False,
    trusted: bool = False,
    allow_host_code: bool = False,
    runtime_cache: str | os.PathLike[str] | None = None,
) -> TrtRunner:
    """Load an engine as `vit_export.runtime.load_engine` does, and measure it if that is due."""
    load = functools.partial(
        TrtRunner,
        path,
        provider=provider,
        device=device,
        allow_host_code=allow_host_code,
        runtime_cache=runtime_cache,
    )
    try:
        runner = load()
    except IncompatibleEngineError:
        if not rebuild:
            raise
        rebuild_engine(path, Device(device).device_id)
        runner = load()
    version = load_backend(runner.provider).version
    check = Check(gpu=runner.gpu, plan_sha256=runner.sidecar.plan_sha256, version=version)
    try:
        if not trusted and needs_check(runner.sidecar, check):
            measure(runner).raise_for_failure()
            remember(path, check)
    except BaseException:
        runner.release()
        raise
    return runner


def rebuild_engine(path: Path, device: int) -> None:
    """Build an engine again on a GPU, in a process that imports what a device does without."""
    sidecar = Sidecar.read(path)
    find_source(path, sidecar)
    on_device = ("--device", str(device)) if device else ()
    build = run_module("vit_export.cli.main", *sidecar.rebuild_arguments(path), *on_device)
    if build.returncode:
        _, _, error = build.stderr.strip().rpartition("Error: ")
        reason, _, hint = error.partition("\nhint: ")
        raise EngineError(
            f"{path.name}: cannot be rebuilt: {reason or 'no message'}",
            hint=f"{hint}; " * bool(hint) + f"the command was: {sidecar.rebuild_command(path)}",
        )


def needs_check(sidecar: Sidecar, check: Check) -> bool:
    """Return whether a check has not yet been made: this plan, on such a GPU, with this version."""
    if sidecar.measured.passed is False:
        raise GateError(f"the engine failed its gate: {sidecar.measured.reason}")
    passed = {*sidecar.checks, *_passed_in_this_process}
    if sidecar.measured.passed and sidecar.gpu is not None:
        passed.add(Check(gpu=sidecar.gpu, plan_sha256=sidecar.plan_sha256, version=sidecar.version))
    return check not in passed


def measure(runner: TrtRunner) -> Comparison:
    """Run the gate on an engine, at the batch sizes of its profiles, with its golden file."""
    return compare(
        runner,
        Golden.read(find_golden(runner.path)),
        stage=f"{runner.provider} engine",
        batches=runner.sidecar.gate_batches,
    )


def remember(path: Path, passed: Check) -> None:
    """Record that a plan passed on a GPU: in its sidecar, or in this process."""
    _passed_in_this_process.add(passed)
    sidecar = Sidecar.read(path)  # another process may have added a check, or replaced the engine
    if sidecar.plan_sha256 == passed.plan_sha256 and passed not in sidecar.checks:
        with contextlib.suppress(OSError):  # on a read-only device each process measures once
            sidecar.replace(checks=(*sidecar.checks, passed)).write(sidecar_path(path))

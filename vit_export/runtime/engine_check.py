"""An engine on the device: rebuilt where it does not fit, measured where nobody could before.

An engine that was built without its GPU has `passed: null` in its certificate. The first load on
a device measures it against the golden file, and the sidecar remembers the plan that passed, the
GPU and the version that ran it; where the sidecar cannot be written, this process does. An engine
that was measured where it was built is measured again where GPU or version are others.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

from vit_export.artifact.engine_sidecar import Check, Sidecar, gate_batches, sidecar_path
from vit_export.artifact.golden import Golden, find_golden
from vit_export.errors import EngineError, GateError
from vit_export.gate.validate import Comparison, compare
from vit_export.runtime.tensorrt.backend import load_backend
from vit_export.runtime.tensorrt.compatibility import MisfitError, source_of
from vit_export.runtime.tensorrt.runner import TrtRunner

_passed_in_this_process: set[Check] = set()


def open_engine(
    path: Path,
    *,
    provider: str = "auto",
    rebuild: bool = False,
    check: bool = True,
    allow_host_code: bool = False,
) -> TrtRunner:
    """Load an engine.

    Args:
        path: The engine, with its sidecar.
        provider: `"auto"`, or its backend.
        rebuild: Whether to build it again from its .onnx where version or GPU are others.
        check: Whether to measure one that nobody has measured on such a GPU.
        allow_host_code: Whether a version compatible engine may run the code that its plan brings.

    Raises:
        ArtifactError: The engine, its sidecar or its golden file is missing or damaged.
        EngineError: It cannot be rebuilt.
        GateError: It does not compute what its torch model computes.
        ProviderError: It cannot run here.
    """
    try:
        runner = TrtRunner(path, provider=provider, allow_host_code=allow_host_code)
    except MisfitError:
        if not rebuild:
            raise
        rebuild_engine(path)
        runner = TrtRunner(path, provider=provider, allow_host_code=allow_host_code)
    with contextlib.ExitStack() as refused:
        refused.callback(runner.release)
        here = Check(
            gpu=runner.gpu,
            plan_sha256=runner.sidecar.plan_sha256,
            version=load_backend(runner.provider).version,
        )
        if check and needs_check(runner.sidecar, here):
            measure(runner).raise_for_failure()
            remember(path, here)
        refused.pop_all()
    return runner


def rebuild_engine(path: Path) -> None:
    """Build an engine again, as its sidecar says, for the GPU that is here.

    In another process: it holds what a build needs, and this one what a device needs.

    Raises:
        ArtifactError: Its .onnx file is not there, or another model by now.
        EngineError: The build failed; what it said is in the message.
    """
    sidecar = Sidecar.read(path)
    source_of(path, sidecar)
    command = [sys.executable, "-m", "vit_export", *sidecar.rebuild_arguments(path)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    if child.returncode:
        lines = child.stderr.strip().splitlines() or ["no message"]
        failure = next((line for line in lines if line.startswith("Error: ")), lines[-1])
        raise EngineError(
            f"{path.name}: cannot be rebuilt: {failure.removeprefix('Error: ')} "
            f"({sidecar.rebuild_command(path)})"
        )


def needs_check(sidecar: Sidecar, here: Check) -> bool:
    """Whether nobody has measured this plan yet on such a GPU, with this version.

    Args:
        sidecar: Of the engine.
        here: The check that would be made.

    Raises:
        GateError: It failed where it was built.
    """
    if sidecar.measured.passed is False:
        raise GateError(f"the engine failed its gate: {sidecar.measured.reason}")
    known = {*sidecar.checks, *_passed_in_this_process}
    if sidecar.measured.passed and sidecar.gpu is not None:
        known.add(Check(gpu=sidecar.gpu, plan_sha256=sidecar.plan_sha256, version=sidecar.version))
    return here not in known


def measure(runner: TrtRunner) -> Comparison:
    """Run the gate on an engine, at the batch sizes of its profiles.

    Raises:
        ArtifactError: There is no golden file beside it.
    """
    return compare(
        runner,
        Golden.read(find_golden(runner.path)),
        stage=f"{runner.provider} engine",
        batches=batches_of(runner.sidecar),
    )


def batches_of(sidecar: Sidecar) -> tuple[int, ...]:
    """Batch sizes to measure an engine at."""
    fixed = sidecar.manifest.inputs[0].shape[0]
    return gate_batches(sidecar.profiles, fixed if isinstance(fixed, int) else None)


def remember(path: Path, passed: Check) -> None:
    """Note that a plan passed on a GPU: in its sidecar, or in this process.

    The sidecar is read anew: meanwhile another process may have added a check, or replaced the
    engine, whose sidecar then stays as it is.
    """
    _passed_in_this_process.add(passed)
    sidecar = Sidecar.read(path)
    if sidecar.plan_sha256 != passed.plan_sha256 or passed in sidecar.checks:
        return
    try:
        sidecar.replace(checks=(*sidecar.checks, passed)).write(sidecar_path(path))
    except OSError:  # a read-only device measures once per process
        return

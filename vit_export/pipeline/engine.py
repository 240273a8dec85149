"""An artifact to a TensorRT engine: converted, built, measured, and only then named.

The packages of the stages are imported in the functions that need them: an artifact that has the
precision already is built with neither torch nor onnx.
"""

from __future__ import annotations

import os
import shlex
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vit_export.artifact.engine_sidecar import (
    Gpu,
    Sidecar,
    file_sha256,
    relative_source,
    sidecar_path,
)
from vit_export.artifact.golden import Golden, find_golden, golden_path
from vit_export.artifact.manifest import Manifest, Stage
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.publish import check_golden_not_shared, check_writable, publish, staging
from vit_export.errors import UsageError
from vit_export.progress import Progress, silent
from vit_export.runtime.tensorrt.backend import Backend, load_backend

if TYPE_CHECKING:
    from vit_export.engine.build import Built
    from vit_export.engine.options import BuildOptions
    from vit_export.gate.validate import Comparison

CONVERTED = ("fp16", "bf16")  # made of an fp32 artifact on the way
ARTIFACT_PRECISION = {"int8": "int8-static"}  # what an engine's precision is called in a manifest
ENGINE_PRECISION = {artifact: engine for engine, artifact in ARTIFACT_PRECISION.items()}


@dataclass(frozen=True, kw_only=True)
class EngineResult:
    """What a build made.

    Attributes:
        path: The `.engine` file.
        golden: The golden file beside it.
        sidecar: What stands in `NAME.engine.json`.
        comparison: The gate on the engine; `None` where it cannot run here.
        converted: Whether the graph was narrowed on the way.
        warnings: What TensorRT warned of.
        size_note: What the size of the plan shows.
        seconds: How long it took.
    """

    path: Path
    golden: Path
    sidecar: Sidecar
    comparison: Comparison | None
    converted: bool
    warnings: tuple[str, ...]
    size_note: str
    seconds: float

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file written."""
        return self.golden, sidecar_path(self.path), self.path


def default_output(source: Path, precision: str) -> Path:
    """`NAME.fp16.engine` beside `NAME.onnx`; `NAME.engine` in fp32."""
    stem = source.with_suffix("")
    tag = "" if precision == "fp32" or stem.suffix.startswith(f".{precision}") else f".{precision}"
    return stem.with_name(stem.name + tag + ".engine")


def make_engine(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    options: BuildOptions,
    progress: Progress = silent,
) -> EngineResult:
    """Build an engine, prove its precision, and measure it where its GPU is at hand.

    Args:
        source: An artifact of vit-export: in fp32, or in the precision that is asked for.
        output: File to write; by default `NAME.<precision>.engine` beside the source.
        options: What is asked for.
        progress: Told what is being done.

    Raises:
        UsageError: The request cannot be met.
        ArtifactError: The source or its golden file is missing, damaged, not for TensorRT, or
            not what it was when it was measured.
        EngineError: TensorRT cannot build it, or builds something else.
        GateError: The engine does not compute what torch computes; nothing was written.
        ProviderError: TensorRT is not installed.
        OutputError: The output cannot be written.
    """
    from vit_export.engine.build import build_engine, targets_of
    from vit_export.engine.profiles import profiles_of
    from vit_export.engine.source import check_source
    from vit_export.engine.timing_cache import cache_key, locked
    from vit_export.runtime.tensorrt.cuda import current_gpu

    started = time.monotonic()
    file = OnnxFile.read(source)
    source = file.path
    path = Path(output) if output is not None else default_output(source, options.precision)
    _check_bad_name(path)
    manifest = check_source(file)
    converts = must_convert(manifest, options, source)
    given = find_golden(source)
    truth = Golden.read(given)
    check_golden_not_shared(path, given)
    backend, gpu = load_backend(options.backend), current_gpu()
    # what cannot be is said before the conversion, which takes long
    targets_of(backend, options, gpu)
    profiles_of(manifest.inputs, options.batches)
    if options.timing_cache is not None:
        with locked(options.timing_cache):
            pass
    source_sha256 = file.check_certified()
    with staging(path) as stage:
        if converts:
            file = _converted(source, stage, options.precision, progress)
            manifest = check_source(file)
        plan = stage / path.name
        built = build_engine(backend, file, manifest, plan, options, gpu=gpu, progress=progress)
        golden_file = stage / golden_path(path).name
        shutil.copyfile(given, golden_file)
        sidecar = Sidecar(
            manifest=manifest.replace(
                certificate=(*manifest.certificate, _unmeasured(backend, built, truth, gpu)),
                toolchain={**manifest.toolchain, backend.name: backend.version},
            ),
            backend=backend.name,
            version=backend.version,
            compute_capabilities=built.compute_capabilities,
            gpu=gpu,
            profiles=built.profiles,
            plan_sha256=file_sha256(plan),
            plan_bytes=built.plan_bytes,
            source=relative_source(path.parent, source),
            source_sha256=source_sha256,
            timing_cache_key=cache_key(backend, gpu),
            options=options.asked(),
            proof={"network": built.product_types, "plan": built.size_note},
            rebuild=options.arguments(),
        )
        comparison = None
        if _runs_here(built, gpu):
            staged = sidecar.replace(
                source=relative_source(stage, source)
            )  # a stripped plan reads it
            staged.write(sidecar_path(plan))
            types, comparison = _measured(plan, options, progress)
            comparison.raise_for_failure()
            sidecar = _with_measured(sidecar, types, comparison.stage)
        sidecar.write(sidecar_path(plan))
        publish([golden_file, sidecar_path(plan), plan], path.parent)
    return EngineResult(
        path=path,
        golden=golden_path(path),
        sidecar=sidecar,
        comparison=comparison,
        converted=converts,
        warnings=built.warnings,
        size_note=built.size_note,
        seconds=time.monotonic() - started,
    )


def must_convert(manifest: Manifest, options: BuildOptions, source: Path) -> bool:
    """Whether an artifact has to be narrowed for the precision that is asked for.

    Raises:
        UsageError: It has another precision, and none of it can be made.
    """
    wanted = ARTIFACT_PRECISION.get(options.precision, options.precision)
    if manifest.precision == wanted:
        return False
    if manifest.precision != "fp32":
        raise UsageError(
            f"--precision {options.precision}: {source.name} is {manifest.precision}, and what an "
            f"engine computes in is what stands in its graph; give --precision "
            f"{ENGINE_PRECISION.get(manifest.precision, manifest.precision)}, or the fp32 artifact"
        )
    if options.precision not in CONVERTED:
        raise UsageError(
            f"--precision {options.precision}: {source.name} is fp32, and scales come from "
            f"pictures; quantize it first: {_quantize_command(source, wanted)}"
        )
    if options.strip:
        raise UsageError(
            "--strip: a stripped engine reads its weights from the .onnx file that it was built "
            f"from, so make that first: {_quantize_command(source, wanted)}, and give it"
        )
    return True


def _quantize_command(source: Path, precision: str, *others: str) -> str:
    """The command that makes a narrower graph, to be typed."""
    return shlex.join(["vit-export", "quantize", str(source), "--precision", precision, *others])


def _check_bad_name(path: Path) -> None:
    if path.suffix != ".engine":
        raise UsageError(f"the output {path} must end in .engine")
    for file in (path, sidecar_path(path), golden_path(path)):
        check_writable(file)


def _converted(source: Path, stage: Path, precision: str, progress: Progress) -> OnnxFile:
    """Narrow an fp32 artifact, measured and repaired as `vit-export quantize` does it.

    It keeps the name of its source, which is the one that the user knows from messages.
    """
    from vit_export.pipeline.quantize import quantize
    from vit_export.quantization.settings import QuantizeSettings

    folder = stage / precision
    folder.mkdir()
    settings = QuantizeSettings(precision=precision)
    made = quantize(source, folder / f"{source.stem}.onnx", settings=settings, progress=progress)
    return OnnxFile.read(made.path)


def _runs_here(built: Built, gpu: Gpu | None) -> bool:
    return gpu is not None and gpu.compute_capability in built.compute_capabilities


def _unmeasured(backend: Backend, built: Built, truth: Golden, gpu: Gpu | None) -> Stage:
    """The engine's line of the certificate, as long as nobody has run it."""
    targets = ", ".join(built.compute_capabilities)
    here = "there is no GPU where it was built" if gpu is None else f"it was built on {gpu}"
    return Stage.unmeasured(
        f"onnx -> {backend.name} engine",
        provider=backend.name,
        samples=truth.samples,
        reason=f"built for compute capability {targets}, and {here}; measured at its first load",
    )


def _measured(
    plan: Path, options: BuildOptions, progress: Progress
) -> tuple[dict[str, int], Comparison]:
    """Run the gate on a built engine, and ask TensorRT what it computes in.

    Returns:
        Number of tensors that its layers write, by type, and what the gate found.
    """
    from vit_export.engine.proof import inspect_engine, prove_engine
    from vit_export.runtime.engine_check import measure
    from vit_export.runtime.tensorrt.runner import TrtRunner

    progress("measure the engine")
    runner = TrtRunner(plan, allow_host_code=True)
    try:
        types = inspect_engine(load_backend(options.backend), runner.engine)
        prove_engine(types, options.precision)
        return types, measure(runner)
    finally:
        runner.release()


def _with_measured(sidecar: Sidecar, types: dict[str, int], stage: Stage) -> Sidecar:
    """A sidecar that says what was found on the GPU, in the place of what nobody had run."""
    certificate = (*sidecar.manifest.certificate[:-1], stage)
    return sidecar.replace(
        manifest=sidecar.manifest.replace(certificate=certificate),
        proof={**sidecar.proof, "engine": types},
    )


def planned_trtexec(source: Path, output: Path | None, options: BuildOptions, version: str) -> str:
    """Say how `trtexec` builds the same engine; nothing is built.

    Args:
        source: An artifact.
        output: The engine that is to be written.
        options: What is asked for.
        version: Of TensorRT; empty for the one that is installed.

    Returns:
        The line, after the command that makes the graph that it needs, where there is none yet.
    """
    from vit_export.engine.profiles import profiles_of
    from vit_export.engine.source import check_source
    from vit_export.engine.trtexec import trtexec_line

    file = OnnxFile.read(source)
    manifest = check_source(file)
    graph, lines = source, []
    if must_convert(manifest, options, source):
        graph = source.with_suffix(f".{options.precision}.onnx")
        lines = [_quantize_command(source, options.precision, "-o", str(graph))]
    lines.append(
        trtexec_line(
            graph,
            output if output is not None else default_output(source, options.precision),
            options,
            profiles_of(manifest.inputs, options.batches),
            version=version or load_backend("tensorrt").version,
            attention_nodes=file.op_counts.get("Attention", 0),
        )
    )
    return "\n".join(lines)

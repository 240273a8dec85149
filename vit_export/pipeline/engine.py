"""Build a TensorRT engine from an artifact: convert, build, check the precision, measure, publish.

Modules that need onnx or cuda-bindings are imported in the functions that use them: an artifact
that has the precision already is built without onnx.
"""

import contextlib
import os
import shlex
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from vit_export.artifact.engine_sidecar import (
    ENGINE_SUFFIXES,
    Sidecar,
    file_sha256,
    is_engine,
    relative_source,
    sidecar_path,
)
from vit_export.artifact.golden import Golden, find_golden, golden_path
from vit_export.artifact.manifest import Manifest, Stage
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.publish import check_golden_not_shared, check_writable, publish, staging
from vit_export.artifact.vocabulary import HALF_PRECISIONS
from vit_export.engine.build import build_plan, cache_key, locked
from vit_export.engine.network import check_source
from vit_export.engine.proof import inspect_engine, inspector_warning, shown_types
from vit_export.engine.settings import EngineSettings, profiles_of, targets_of
from vit_export.engine.trtexec import trtexec_command
from vit_export.errors import UsageError
from vit_export.gate.validate import Comparison
from vit_export.progress import Progress, silent
from vit_export.quantization.settings import QuantizeSettings
from vit_export.runtime.tensorrt.backend import load_backend


@dataclass(frozen=True, kw_only=True)
class EngineResult:
    """A built engine.

    Attributes:
        path: The engine.
        golden: The golden file beside it.
        sidecar: The content of its sidecar.
        comparison: The gate on the engine; `None` where it cannot run here.
        converted: Whether an fp32 artifact was converted before the build.
        warnings: Doubts about the precision of the engine, and TensorRT's warnings.
        seconds: Duration.
    """

    path: Path
    golden: Path
    sidecar: Sidecar
    comparison: Comparison | None
    converted: bool
    warnings: tuple[str, ...]
    seconds: float

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file written."""
        return self.golden, sidecar_path(self.path), self.path


def default_output(source: Path, precision: str) -> Path:
    """Return `NAME.fp16.engine` beside `NAME.onnx`; `NAME.engine` in fp32."""
    stem = source.with_suffix("")
    tag = "" if precision == "fp32" or stem.suffix.startswith(f".{precision}") else f".{precision}"
    return stem.with_name(stem.name + tag + ".engine")


def build_engine(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    settings: EngineSettings = EngineSettings(),
    progress: Progress = silent,
) -> EngineResult:
    """Build an engine, check its precision, and measure it if its GPU is here.

    Args:
        source: An artifact of vit-export, in fp32 or in the precision of the settings.
        output: File to write, an `.engine`, `.plan` or `.trt`; by default
            `NAME.<precision>.engine` beside the source.
        settings: How to build.
        progress: Called with the current step and its progress.

    Raises:
        UsageError: The settings cannot be met.
        ArtifactError: The source or its golden file is missing, damaged, not for TensorRT, or
            was changed after it was measured.
        EngineError: TensorRT cannot build the engine, or builds another precision.
        GateError: The engine does not compute what torch computes; nothing was written.
        ProviderError: TensorRT is not installed.
        OutputError: The output cannot be written.
    """
    from vit_export.runtime.tensorrt.cuda import current_gpu, working_on

    started = time.monotonic()
    file = OnnxFile.read(source)
    path = Path(output or default_output(file.path, settings.precision))
    if not is_engine(path):
        raise UsageError(f"the output {path} must end in {', '.join(ENGINE_SUFFIXES)}")
    for written in (path, sidecar_path(path), golden_path(path)):
        check_writable(written)
    manifest = check_source(file)
    golden = find_golden(file.path)
    samples = Golden.read(golden).samples
    check_golden_not_shared(path, golden)
    backend, gpu = load_backend(settings.backend), current_gpu(settings.device)
    if gpu is None and settings.device is not None:
        raise UsageError(f"device {settings.device}: there is no NVIDIA GPU here (or no driver)")
    convert = must_convert(manifest, settings, file.path)
    # The conversion takes minutes: find every other error before it.
    targets_of(backend, settings, gpu)
    profiles_of(manifest.inputs, settings.batches)
    if settings.timing_cache is not None:
        with locked(settings.timing_cache):
            pass
    source_sha256 = file.check_certified()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(staging(path))
        device = None if gpu is None else stack.enter_context(working_on(settings.device))
        graph = file
        if convert:
            from vit_export.pipeline.quantize import quantize

            narrow = QuantizeSettings(precision=settings.precision)
            # in a folder of its own, under the name of its source, which messages quote
            converted = folder / narrow.precision / f"{file.path.stem}.onnx"
            converted.parent.mkdir()
            quantize(file.path, converted, settings=narrow, progress=progress)
            graph = OnnxFile.read(converted)
            manifest = check_source(graph)
        plan = folder / path.name
        built = build_plan(
            backend, graph, manifest, plan, settings, gpu=gpu, device=device, progress=progress
        )
        targets = ", ".join(built.compute_capabilities)
        here = "there is no GPU where it was built" if gpu is None else f"it was built on {gpu}"
        reason = f"built for compute capability {targets}, and {here}; measured at its first load"
        unmeasured = Stage(
            name=f"onnx -> {backend.name} engine",
            provider=backend.name,
            samples=samples,
            passed=None,
            reasons=(reason,),
        )
        sidecar = Sidecar(
            manifest=manifest.replace(
                certificate=(*manifest.certificate, unmeasured),
                toolchain={**manifest.toolchain, backend.name: backend.version},
            ),
            backend=backend.name,
            version=backend.version,
            compute_capabilities=built.compute_capabilities,
            gpu=gpu,
            device=device,
            profiles=built.profiles,
            plan_sha256=file_sha256(plan),
            plan_bytes=plan.stat().st_size,
            source=relative_source(path.parent, file.path),
            source_sha256=source_sha256,
            timing_cache_key=cache_key(backend, gpu),
            options=settings.changed(),
            proof={
                "network": built.product_types,
                "plan": built.size_note,
                "warnings": [] if built.size_fits else [f"the plan has {built.size_note}"],
            },
            rebuild=settings.arguments(),
        )
        shutil.copyfile(golden, golden_path(plan))
        comparison = None
        if gpu is not None and gpu.compute_capability in built.compute_capabilities:
            progress("measure the engine")
            sidecar, comparison = _measured(plan, sidecar, file.path)
        sidecar.write(sidecar_path(plan))
        # The sidecar first: if the process is killed between two files, an old plan and a new
        # sidecar have different hashes, and `load` says how to build the engine again.
        publish([sidecar_path(plan), golden_path(plan), plan], path.parent)
    return EngineResult(
        path=path,
        golden=golden_path(path),
        sidecar=sidecar,
        comparison=comparison,
        converted=convert,
        warnings=(
            *sidecar.proof["warnings"],
            *(f"TensorRT: {warning}" for warning in built.warnings),
        ),
        seconds=time.monotonic() - started,
    )


def must_convert(manifest: Manifest, settings: EngineSettings, source: Path) -> bool:
    """Return whether an artifact must be converted first; raise UsageError if it cannot be."""
    precision = settings.precision
    wanted = "int8-static" if precision == "int8" else precision
    command = _quantize_command(source, wanted)
    if manifest.precision == wanted:
        return False
    if manifest.precision != "fp32":
        raise UsageError(
            f"--precision {precision}: {source.name} is {manifest.precision}, and an engine "
            "computes in the types of its graph",
            hint=f"use --precision {manifest.precision.removesuffix('-static')}, or the fp32 "
            "artifact",
        )
    if precision not in HALF_PRECISIONS:
        raise UsageError(
            f"--precision {precision}: {source.name} is fp32, and int8 scales come from images",
            hint=f"quantize it first: {command}",
        )
    if settings.strip:
        raise UsageError(
            "--strip: a stripped engine reads its weights from the .onnx file that it was built "
            f"from, and {source.name} would be converted to a temporary file",
            hint=f"build from the result of: {command}",
        )
    return True


def _quantize_command(source: Path, precision: str, *others: str) -> str:
    return shlex.join(["vit-export", "quantize", str(source), "--precision", precision, *others])


def _measured(plan: Path, sidecar: Sidecar, source: Path) -> tuple[Sidecar, Comparison]:
    """Inspect a built engine on the GPU of this thread, run its gate, and certify both."""
    from vit_export.runtime.engine_check import measure
    from vit_export.runtime.tensorrt.runner import TrtRunner

    # In the temporary folder the path of the source is another; a stripped plan reads it.
    sidecar.replace(source=relative_source(plan.parent, source)).write(sidecar_path(plan))
    runner = TrtRunner(plan, allow_host_code=True)
    try:
        backend = load_backend(sidecar.backend)
        shown = shown_types(inspect_engine(backend, runner.engine, sidecar.profiles))
        comparison = measure(runner)
    finally:
        runner.release()
    comparison.raise_for_failure()
    certificate = (*sidecar.manifest.certificate[:-1], comparison.stage)
    manifest = sidecar.manifest.replace(certificate=certificate)
    doubt = inspector_warning(shown, str(sidecar.options["precision"]))
    proof = {
        **sidecar.proof,
        "engine": shown or "not shown",
        "warnings": [*sidecar.proof["warnings"], *([doubt] if doubt else [])],
    }
    return sidecar.replace(manifest=manifest, proof=proof), comparison


def trtexec_commands(
    source: Path, output: Path | None, settings: EngineSettings, version: str
) -> str:
    """Return the `trtexec` command that builds the same engine, after that of a conversion.

    An empty version of TensorRT stands for the installed one.
    """
    file = OnnxFile.read(source)
    manifest = check_source(file)
    graph, lines = source, []
    if must_convert(manifest, settings, source):
        graph = source.with_suffix(f".{settings.precision}.onnx")
        lines = [_quantize_command(source, settings.precision, "-o", str(graph))]
    lines.append(
        trtexec_command(
            graph,
            output or default_output(source, settings.precision),
            settings,
            profiles_of(manifest.inputs, settings.batches),
            version=version or load_backend("tensorrt").version,
            attention_nodes=file.op_counts.get("Attention", 0),
        )
    )
    return "\n".join(lines)

"""`vit-export engine`: build a TensorRT engine from an ONNX artifact."""

from dataclasses import dataclass
from pathlib import Path

import click

from vit_export.cli.console import ProgressBar, attributes, emit
from vit_export.cli.option_fields import command, option


@dataclass(frozen=True, kw_only=True)
class _Options:
    precision: str = option(
        "Precision", "fp16, bf16, fp32 or int8; halves are made from fp32.", default="fp16"
    )
    backend: str = option("Target", "tensorrt or tensorrt-rtx.", default="tensorrt")
    batch: tuple[str, ...] = option("Target", "Once per profile; 1:8:32 by default.", "MIN:OPT:MAX")
    compute_capability: tuple[str, ...] = option(
        "Target", "e.g. 8.9; several with tensorrt-rtx. By default this machine's GPU.", "X.Y"
    )
    device: int | None = option("Target", "Number of the GPU that builds and measures; else 0.")
    hardware_compatibility: str = option(
        "Target", "none, ampere-plus or same-compute-capability.", default="none"
    )
    version_compatible: bool = option("Target", "Let later TensorRT versions run the engine.")
    workspace_mib: int | None = option("Build", "Scratch memory limit of one layer.")
    timing_cache: Path | None = option("Build", "Timings that builds read and add to.", "FILE")
    builder_level: int | None = option("Build", "0 to 5: how long to search for fast kernels.")
    weight_streaming: bool = option("Weights", "Let weights stay in host memory.")
    refit: bool = option("Weights", "Let weights be replaced later.")
    strip: bool = option("Weights", "Leave weights out; they are read from the .onnx at load.")
    print_trtexec: str | None = option(
        "Output",
        "Print the trtexec line of the same build for TensorRT 10 or 11; build nothing.",
        "[VERSION]",
        is_flag=False,
        flag_value="",
    )
    output: Path | None = option(
        "Output", ".engine, .plan or .trt; by default NAME.<precision>.engine", "PATH"
    )


@command(_Options)
@click.argument("artifact")
def engine(artifact: str, options: _Options, as_json: bool) -> None:
    """Build a TensorRT engine, and check its precision.

    If its GPU is here, its error is measured too.
    """
    from vit_export.cli.report.results import engine_text
    from vit_export.engine.settings import EngineSettings, parse_range
    from vit_export.pipeline.engine import build_engine, trtexec_commands

    output = options.output
    settings = EngineSettings(
        batches=tuple(parse_range(text) for text in options.batch),
        compute_capabilities=options.compute_capability,
        backend=options.backend,
        precision=options.precision,
        device=options.device,
        hardware_compatibility=options.hardware_compatibility,
        version_compatible=options.version_compatible,
        workspace_mib=options.workspace_mib,
        timing_cache=options.timing_cache,
        builder_level=options.builder_level,
        weight_streaming=options.weight_streaming,
        refit=options.refit,
        strip=options.strip,
    )
    if options.print_trtexec is not None:
        line = trtexec_commands(Path(artifact), output, settings, options.print_trtexec)
        emit(as_json, {"trtexec": line}, line)
        return
    with ProgressBar() as progress:
        result = build_engine(artifact, output, settings=settings, progress=progress)
    data = {
        **attributes(result, "path golden files seconds converted warnings sidecar"),
        **attributes(result.sidecar.measured, "passed reason"),
        "size_bytes": result.sidecar.plan_bytes,
    }
    emit(as_json, data, engine_text(result))

"""`vit-export engine`: build a TensorRT engine from an ONNX artifact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from vit_export.cli.console import emit, progress_bar
from vit_export.cli.option_groups import GroupedCommand, option, option_group
from vit_export.cli.options import OUTPUT, PRECISION, json_option, path_of

if TYPE_CHECKING:
    from vit_export.engine.settings import EngineSettings

TARGET, BUILD, WEIGHTS = "Target", "Build", "Weights"


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What to build."""

    backend: str
    precision: str
    batch: tuple[str, ...]
    compute_capability: tuple[str, ...]
    hardware_compatibility: str
    version_compatible: bool
    workspace_mib: int | None
    timing_cache: str | None
    builder_level: int | None
    weight_streaming: bool
    refit: bool
    strip: bool

    def settings(self) -> EngineSettings:
        """Return the settings of a build."""
        from vit_export.engine.profiles import parse_range
        from vit_export.engine.settings import EngineSettings

        return EngineSettings(
            backend=self.backend,
            precision=self.precision,
            batches=tuple(parse_range(text) for text in self.batch),
            compute_capabilities=self.compute_capability,
            hardware_compatibility=self.hardware_compatibility,
            version_compatible=self.version_compatible,
            workspace_mib=self.workspace_mib,
            timing_cache=path_of(self.timing_cache),
            builder_level=self.builder_level,
            weight_streaming=self.weight_streaming,
            refit=self.refit,
            strip=self.strip,
        )


engine_options = option_group(
    "options", EngineOptions,
    option("--precision", group=PRECISION, default="fp16", show_default=True,
           help="fp16, bf16, fp32 or int8; fp16 and bf16 are made from an fp32 artifact."),
    option("--backend", group=TARGET, default="tensorrt", show_default=True,
           help="tensorrt or tensorrt-rtx."),
    option("--batch", group=TARGET, multiple=True, metavar="MIN:OPT:MAX",
           help="Once per optimization profile; 1:8:32 by default."),
    option("--compute-capability", group=TARGET, multiple=True, metavar="X.Y",
           help="e.g. 8.9; several with tensorrt-rtx. By default this machine's GPU."),
    option("--hardware-compatibility", group=TARGET, default="none", show_default=True,
           help="none, ampere-plus or same-compute-capability."),
    option("--version-compatible", group=TARGET, is_flag=True,
           help="Let later TensorRT versions run the engine."),
    option("--workspace-mib", group=BUILD, type=int, help="Scratch memory limit of one layer."),
    option("--timing-cache", group=BUILD, metavar="FILE",
           help="Timings of earlier builds; builds share and extend it."),
    option("--builder-level", group=BUILD, type=int,
           help="0 to 5: how long to search for fast kernels."),
    option("--weight-streaming", group=WEIGHTS, is_flag=True,
           help="Let weights stay in host memory."),
    option("--refit", group=WEIGHTS, is_flag=True, help="Let weights be replaced later."),
    option("--strip", group=WEIGHTS, is_flag=True,
           help="Leave weights out; they are read from the .onnx at load."),
)  # fmt: skip


@click.command(cls=GroupedCommand)
@click.argument("artifact")
@engine_options
@option("--print-trtexec", "trtexec", group=OUTPUT, is_flag=False, flag_value="",
        metavar="[VERSION]",
        help="Print the trtexec line of the same build for TensorRT 10 or 11, and build nothing.",
)  # fmt: skip
@option("-o", "--output", group=OUTPUT, metavar="PATH",
        help="By default NAME.<precision>.engine")  # fmt: skip
@json_option
def engine(
    artifact: str,
    options: EngineOptions,
    trtexec: str | None,
    output: str | None,
    as_json: bool,
) -> None:
    """Build a TensorRT engine, check its precision, and measure it if its GPU is here."""
    from pathlib import Path

    from vit_export.cli.report.engines import engine_text
    from vit_export.pipeline.engine import build_engine, trtexec_commands

    settings = options.settings()
    if trtexec is not None:
        line = trtexec_commands(Path(artifact), path_of(output), settings, trtexec)
        emit(as_json, {"trtexec": line}, line)
        return
    with progress_bar() as progress:
        result = build_engine(artifact, output, settings=settings, progress=progress)
    data = {
        "path": result.path,
        "golden": result.golden,
        "files": result.files,
        "size_bytes": result.sidecar.plan_bytes,
        "seconds": result.seconds,
        "passed": result.sidecar.measured.passed,
        "reason": result.sidecar.measured.reason,
        "converted": result.converted,
        "warnings": result.warnings,
        "sidecar": result.sidecar,
    }
    emit(as_json, data, engine_text(result))

"""`vit-export engine`: an ONNX artifact to a TensorRT engine."""

from __future__ import annotations

from typing import Any

import click

from vit_export.cli.console import emit, progress_bar
from vit_export.cli.options import json_option


@click.command()
@click.argument("artifact")
@click.option("--backend", default="tensorrt", show_default=True, help="tensorrt or tensorrt-rtx.")
@click.option(
    "--precision", default="fp16", show_default=True, help="fp16, bf16, fp32 or int8; fp16 and "
    "bf16 are made of an fp32 artifact.",
)  # fmt: skip
@click.option(
    "--batch", "batches", multiple=True, metavar="MIN:OPT:MAX",
    help="Once per optimization profile; 1:8:32 unless given.",
)  # fmt: skip
@click.option(
    "--compute-capability", "compute_capabilities", multiple=True, metavar="X.Y",
    help="e.g. 8.9; several with tensorrt-rtx. By default the GPU that is here.",
)  # fmt: skip
@click.option("--workspace-mib", type=int, help="Most scratch memory of one layer.")
@click.option("--timing-cache", metavar="FILE", help="Timings of earlier builds; shared, merged.")
@click.option("--builder-level", type=int, help="0 to 5: how long to look for fast kernels.")
@click.option("--version-compatible", is_flag=True, help="Later versions may run it.")
@click.option(
    "--hardware-compatibility", default="none", show_default=True,
    help="none, ampere-plus or same-compute-capability.",
)  # fmt: skip
@click.option("--weight-streaming", is_flag=True, help="Weights may stay in host memory.")
@click.option("--refit", is_flag=True, help="Weights can be replaced later.")
@click.option("--strip", is_flag=True, help="A plan without weights; read from the .onnx at load.")
@click.option(
    "--print-trtexec", "trtexec", is_flag=False, flag_value="", metavar="[VERSION]",
    help="Print the trtexec line that builds the same, for TensorRT 10 or 11, and build nothing.",
)  # fmt: skip
@click.option("-o", "--output", metavar="PATH", help="By default NAME.<precision>.engine")
@json_option
def engine(artifact: str, as_json: bool, **options: Any) -> None:
    """Build a TensorRT engine whose precision is proved, and measured where its GPU is."""
    from pathlib import Path

    from vit_export.cli.report.engines import engine_text
    from vit_export.engine.options import BuildOptions
    from vit_export.engine.profiles import parse
    from vit_export.pipeline.engine import make_engine, planned_trtexec

    trtexec, output = options.pop("trtexec"), options.pop("output")
    options["batches"] = tuple(parse(text) for text in options["batches"])
    cache = options["timing_cache"]
    asked = BuildOptions(**{**options, "timing_cache": Path(cache) if cache else None})
    if trtexec is not None:
        line = planned_trtexec(Path(artifact), Path(output) if output else None, asked, trtexec)
        emit(as_json, {"trtexec": line}, line)
        return
    with progress_bar() as progress:
        result = make_engine(artifact, output, options=asked, progress=progress)
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

"""`vit-export quantize`: an fp32 artifact to FP16, BF16 or INT8, gated and repaired."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vit_export.cli.console import emit, progress_bar
from vit_export.cli.options import json_option, path_of, precision_options, precision_settings

if TYPE_CHECKING:
    from vit_export.pipeline.quantize import QuantizeResult


@click.command()
@click.argument("artifact")
@click.option(
    "--precision",
    required=True,
    type=click.Choice(["fp16", "bf16", "int8", "int8-static"]),
)
@precision_options
@click.option("--golden", metavar="FILE", help="By default NAME.golden.npz beside the artifact.")
@click.option("--images", metavar="PATH", help="Real images to compare classes on: folder or CSV.")
@click.option(
    "--explain",
    is_flag=True,
    help="Show what each block does to the result, as a table and NAME.sensitivity.png.",
)
@click.option("--external-data", is_flag=True, help="Weights beside the file; above 2 GiB always.")
@click.option("-o", "--output", metavar="PATH", help="By default NAME.<precision>.onnx")
@json_option
def quantize(artifact: str, as_json: bool, **options: Any) -> None:
    """Make an fp32 artifact narrower; layers stay wide where the gate needs it."""
    from vit_export.cli.report.conversions import quantize_text
    from vit_export.cli.report.pictures import check_matplotlib
    from vit_export.pipeline.quantize import QuantizeSettings
    from vit_export.pipeline.quantize import quantize as convert

    if options["explain"]:
        check_matplotlib()
    with progress_bar() as progress:
        result = convert(
            artifact,
            options["output"],
            settings=QuantizeSettings(
                precision=options["precision"],
                images=path_of(options["images"]),
                explain=options["explain"],
                **precision_settings(options),
            ),
            golden=options["golden"],
            external_data=options["external_data"],
            progress=progress,
        )
    picture = _draw(result) if options["explain"] and result.blocks else None
    data = {
        "path": result.path,
        "golden": result.golden,
        "files": result.files,
        "source_bytes": result.source_bytes,
        "size_bytes": result.size_bytes,
        "seconds": result.seconds,
        "passed": result.comparison.stage.passed,
        "accuracy": result.comparison.stage.accuracy,
        "blocks": result.blocks,
        "layers": result.layers,
        "picture": picture,
        "manifest": result.manifest,
    }
    emit(as_json, data, quantize_text(result, picture))


def _draw(result: QuantizeResult) -> Path | None:
    """Draw the error per block; the artifact is written already, so a failure is only a line."""
    from vit_export.cli.report.error_plot import sensitivity_plot
    from vit_export.cli.report.pictures import draw_picture

    path = result.path.with_suffix(".sensitivity.png")
    title = f"{result.path.name}: error with only this block in {result.manifest.precision}"
    problem = draw_picture(path, lambda path: sensitivity_plot(result.blocks, title, path))
    if problem:
        click.echo(problem, err=True)
    return None if problem else path

"""`vit-export quantize`: convert an fp32 artifact to FP16, BF16 or INT8."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vit_export.cli.console import emit, progress_bar
from vit_export.cli.option_groups import GroupedCommand, option
from vit_export.cli.options import (
    OUTPUT,
    PRECISION,
    PrecisionOptions,
    external_data_option,
    golden_option,
    json_option,
    precision_options,
)

if TYPE_CHECKING:
    from vit_export.pipeline.quantize import QuantizeResult


@click.command(cls=GroupedCommand)
@click.argument("artifact")
@golden_option
@option("--precision", group=PRECISION, required=True,
        type=click.Choice(["fp16", "bf16", "int8", "int8-static"]))  # fmt: skip
@precision_options
@option("--images", group=PRECISION, metavar="PATH",
        help="Real images to compare classes on: a folder or a digits CSV.")  # fmt: skip
@option("--explain", group=OUTPUT, is_flag=True,
        help="Show the error of each block, as a table and NAME.sensitivity.png.")  # fmt: skip
@external_data_option
@option("-o", "--output", group=OUTPUT, metavar="PATH", help="By default NAME.<precision>.onnx")
@json_option
def quantize(
    artifact: str,
    golden: str | None,
    precision: str,
    conversion: PrecisionOptions,
    images: str | None,
    explain: bool,
    external_data: bool,
    output: str | None,
    as_json: bool,
) -> None:
    """Convert an fp32 artifact; layers stay fp32 where the gate needs it."""
    from vit_export.cli.report.conversions import quantize_text
    from vit_export.cli.report.pictures import check_matplotlib
    from vit_export.pipeline.quantize import quantize as convert

    if explain:
        check_matplotlib()
    with progress_bar() as progress:
        result = convert(
            artifact,
            output,
            settings=conversion.settings(precision, images=images, explain=explain),
            golden=golden,
            external_data=external_data,
            progress=progress,
        )
    picture = _draw(result) if explain and result.blocks else None
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

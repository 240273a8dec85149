"""`vit-export quantize`: convert an fp32 artifact to FP16, BF16 or INT8."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vit_export.cli.console import attributes, emit, progress_bar
from vit_export.cli.option_fields import OUTPUT, PRECISION, SOURCE, SectionCommand, option, takes
from vit_export.cli.options import PrecisionOptions, json_option

if TYPE_CHECKING:
    from vit_export.pipeline.quantize import QuantizeResult


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions(PrecisionOptions):
    """Options of `quantize`."""

    golden: str | None = option(SOURCE, "By default NAME.golden.npz beside the artifact.", "FILE")
    images: str | None = option(
        PRECISION, "Real images to compare classes on: folder, pattern or digits CSV.", "PATH"
    )
    explain: bool = option(OUTPUT, "Show the error of each block, as a table and a picture.")
    external_data: bool = option(OUTPUT, "Store weights beside the file; above 2 GiB always.")
    output: str | None = option(OUTPUT, "By default NAME.<precision>.onnx", "PATH", short="-o")


@click.command(cls=SectionCommand)
@click.argument("artifact")
@takes(QuantizeOptions)
@json_option
def quantize(artifact: str, options: QuantizeOptions, as_json: bool) -> None:
    """Convert an fp32 artifact; layers stay fp32 where the gate needs it."""
    from vit_export.cli.report.exports import quantize_text
    from vit_export.cli.report.pictures import check_matplotlib
    from vit_export.pipeline.quantize import quantize as convert

    if options.explain:
        check_matplotlib()
    with progress_bar() as progress:
        result = convert(
            artifact,
            options.output,
            settings=options.quantize_settings(images=options.images, explain=options.explain),
            golden=options.golden,
            external_data=options.external_data,
            progress=progress,
        )
    picture = _draw(result) if options.explain and result.blocks else None
    names = "path golden files source_bytes size_bytes seconds blocks layers manifest"
    stage = result.comparison.stage
    data = attributes(result, names) | attributes(stage, "passed accuracy") | {"picture": picture}
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

"""`vit-export quantize`: convert an fp32 artifact to FP16, BF16 or INT8."""

from dataclasses import dataclass
from pathlib import Path

import click

from vit_export.cli.console import ProgressBar, attributes, emit
from vit_export.cli.option_fields import command, option
from vit_export.cli.options import PrecisionOptions


@dataclass(frozen=True, kw_only=True)
class _Options(PrecisionOptions):
    golden: str | None = option("Source", "By default NAME.golden.npz beside the artifact.", "FILE")
    images: Path | None = option(
        "Precision", "Real images to compare classes on: folder, pattern or digits CSV.", "PATH"
    )
    explain: bool = option("Output", "Show the error of each block, as a table and a picture.")
    external_data: bool = option("Output", "Store weights beside the file; above 2 GiB always.")
    output: Path | None = option("Output", "By default NAME.<precision>.onnx", "PATH")


@command(_Options)
@click.argument("artifact")
def quantize(artifact: str, options: _Options, as_json: bool) -> None:
    """Convert an fp32 artifact to a narrower precision.

    Layers stay fp32 where the gate needs it.
    """
    from vit_export.cli.report.pictures import check_matplotlib, draw_picture
    from vit_export.cli.report.plots import sensitivity_plot
    from vit_export.cli.report.results import quantize_text
    from vit_export.pipeline.quantize import quantize as convert

    if options.explain:
        check_matplotlib()
    with ProgressBar() as progress:
        result = convert(
            artifact,
            options.output,
            settings=options.quantize_settings(images=options.images, explain=options.explain),
            golden=options.golden,
            external_data=options.external_data,
            progress=progress,
        )
    picture = None
    if options.explain and result.blocks:
        picture = result.path.with_suffix(".sensitivity.png")
        title = f"{result.path.name}: error with only this block in {result.manifest.precision}"
        if problem := draw_picture(picture, sensitivity_plot, result.blocks, title):
            picture = None
            click.echo(problem, err=True)
    names = "path golden files source_bytes size_bytes seconds blocks layers manifest"
    stage = result.comparison.stage
    data = attributes(result, names) | attributes(stage, "passed accuracy") | {"picture": picture}
    emit(as_json, data, quantize_text(result, picture))

"""`vit-export validate`: run the gate again on an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vit_export.cli.console import emit, progress_bar
from vit_export.cli.option_groups import GroupedCommand, option
from vit_export.cli.options import (
    OUTPUT,
    SOURCE,
    PreparationOptions,
    ProviderOptions,
    golden_option,
    json_option,
    layout_option,
    path_of,
    preparation_options,
    provider_options,
)

if TYPE_CHECKING:
    from vit_export.gate.validate import Comparison


@click.command(cls=GroupedCommand)
@click.argument("artifact")
@golden_option
@option("--weights", group=SOURCE, metavar="FILE",
        help="Compute the float64 reference again from this checkpoint.")  # fmt: skip
@layout_option
@preparation_options
@provider_options
@option("--trace", group=OUTPUT, is_flag=True,
        help="Show the error of every block, as a table and a picture.")  # fmt: skip
@option("--plot", group=OUTPUT, metavar="FILE",
        help="The picture: .png, .svg or .pdf; by default NAME.trace.png")  # fmt: skip
@json_option
def validate(
    artifact: str,
    golden: str | None,
    weights: str | None,
    layout: str | None,
    preparation: PreparationOptions,
    run: ProviderOptions,
    trace: bool,
    plot: str | None,
    as_json: bool,
) -> None:
    """Run the gate again on an artifact; needs numpy and onnxruntime only."""
    from vit_export.cli.report.gates import comparison_text
    from vit_export.cli.report.pictures import check_picture
    from vit_export.pipeline.settings import ValidateSettings
    from vit_export.pipeline.validate import validate as run_gate

    picture = path_of(plot)
    if picture is not None:
        check_picture(picture)
    settings = ValidateSettings(
        golden=golden,
        weights=weights,
        layout=layout,
        provider=run.provider,
        allow_host_code=run.trust_host_code,
        preprocess=preparation.for_artifact(artifact),
        trace=trace or picture is not None,
    )
    with progress_bar() as progress:
        result = run_gate(artifact, settings=settings, progress=progress)
    failures, text = [], comparison_text(result)
    if not result.passed:
        failures.append(f"{artifact} does not compute what its torch model computes")
    drawn, missing = None, ""
    if settings.trace:
        drawn, missing = _draw(result, Path(artifact), picture)
    if drawn is not None:
        text += f"\npicture: {drawn}"
    if missing and picture is not None:
        failures.append(missing)
    elif missing:
        click.echo(missing, err=True)
    data = {
        "artifact": artifact,
        "passed": result.passed,
        "hop": result.stage,
        "blocks": result.blocks,
        "picture": drawn,
    }
    emit(as_json, data, text, failures=failures)


def _draw(result: Comparison, artifact: Path, picture: Path | None) -> tuple[Path | None, str]:
    """Draw the error per block; return the picture, or `None` and why there is none."""
    from vit_export.cli.report.pictures import draw_picture

    path = picture or artifact.with_suffix(".trace.png")

    def draw(path: Path) -> None:
        from vit_export.cli.report.error_plot import trace_plot

        trace_plot(result.blocks, f"{artifact.name} on {result.stage.provider}", path)

    problem = draw_picture(path, draw)
    return None if problem else path, problem

"""`vit-export validate`: run the gate again on an artifact."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vit_export.cli.console import emit, progress_bar
from vit_export.cli.option_fields import OUTPUT, SOURCE, SectionCommand, option, takes
from vit_export.cli.options import PreparationOptions, ProviderOptions, json_option, path_of

if TYPE_CHECKING:
    from vit_export.gate.validate import Comparison


@dataclass(frozen=True, kw_only=True)
class ValidateOptions(ProviderOptions, PreparationOptions):
    """Options of `validate`."""

    golden: str | None = option(SOURCE, "By default NAME.golden.npz beside the artifact.", "FILE")
    weights: str | None = option(SOURCE, "Compute the reference again from it.", "CHECKPOINT")
    layout: str | None = option(SOURCE, "Naming scheme of the checkpoint; recognised by default.")
    trace: bool = option(OUTPUT, "Show the error of every block, as a table and a picture.")
    plot: str | None = option(OUTPUT, "The picture; by default NAME.trace.png", "FILE")


@click.command(cls=SectionCommand)
@click.argument("artifact")
@takes(ValidateOptions)
@json_option
def validate(artifact: str, options: ValidateOptions, as_json: bool) -> None:
    """Run the gate again on an artifact; needs numpy and onnxruntime only."""
    from vit_export.cli.report.gates import comparison_text
    from vit_export.cli.report.pictures import check_picture
    from vit_export.pipeline.settings import ValidateSettings
    from vit_export.pipeline.validate import validate as run_gate

    picture = path_of(options.plot)
    if picture is not None:
        check_picture(picture)
    settings = ValidateSettings(
        golden=options.golden,
        weights=options.weights,
        layout=options.layout,
        provider=options.provider,
        allow_host_code=options.trust_host_code,
        preprocess=options.preprocess_of(artifact),
        trace=options.trace or picture is not None,
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

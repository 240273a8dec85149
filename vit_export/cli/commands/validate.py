"""`vit-export validate`: the gate again, wherever the artifact is now."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vit_export.cli.console import emit, progress_bar
from vit_export.cli.options import (
    foreign_preprocess,
    host_code_option,
    json_option,
    layout_option,
    path_of,
    preprocess_options,
    provider_option,
)
from vit_export.errors import OutputError

if TYPE_CHECKING:
    from vit_export.gate.validate import Comparison

BENCH_INSTALL = "pip install 'vit-export[bench]'"


@click.command()
@click.argument("artifact")
@click.option("--golden", metavar="FILE", help="By default NAME.golden.npz beside the artifact.")
@click.option("--weights", metavar="FILE", help="Compute the truth again from this checkpoint.")
@click.option("--trace", is_flag=True, help="Show the error of every block, as table and picture.")
@click.option(
    "--plot",
    metavar="FILE",
    help="Picture of the trace, .png, .svg or .pdf; by default NAME.trace.png",
)
@layout_option
@preprocess_options
@provider_option
@host_code_option
@json_option
def validate(artifact: str, as_json: bool, **options: Any) -> None:
    """Run the gate again on an artifact; needs numpy and onnxruntime only."""
    from vit_export.cli.report import comparison
    from vit_export.pipeline.settings import ValidateSettings
    from vit_export.pipeline.validate import validate as run_gate

    plot = path_of(options["plot"])
    if plot is not None:
        from vit_export.cli.report.plot_style import check_picture_path

        check_picture_path(plot)
    with progress_bar() as progress:
        found = run_gate(
            artifact,
            settings=ValidateSettings(
                golden=options["golden"],
                weights=options["weights"],
                layout=options["layout"],
                provider=options["provider"],
                allow_host_code=options["allow_host_code"],
                preprocess=foreign_preprocess(artifact, options),
                trace=options["trace"] or plot is not None,
            ),
            progress=progress,
        )
    picture, missing = None, ""
    if options["trace"] or plot is not None:
        picture, missing = _draw(found, Path(artifact), plot)
    failures = []
    if not found.passed:
        failures.append(f"{artifact} does not compute what its torch model does")
    if missing and plot is not None:
        failures.append(missing)
    elif missing:
        click.echo(missing, err=True)
    data = {"artifact": artifact, "passed": found.passed, "hop": found.stage,
            "blocks": found.blocks, "picture": picture}  # fmt: skip
    if failures:
        data["error"] = "; ".join(failures)
    text = comparison(found)
    emit(as_json, data, text if picture is None else f"{text}\npicture: {picture}")
    if failures:
        click.echo(f"Error: {data['error']}", err=True)
        sys.exit(1)


def _draw(found: Comparison, artifact: Path, plot: Path | None) -> tuple[Path | None, str]:
    """Draw the error per block; return the picture, or why there is none: the table stays."""
    path = plot or artifact.with_suffix(".trace.png")
    try:
        from vit_export.cli.report.error_plot import trace_plot

        trace_plot(found.blocks, f"{artifact.name} on {found.stage.provider}", path)
    except ModuleNotFoundError as error:
        return None, f"no picture: {error.name} is not installed ({BENCH_INSTALL})"
    except OutputError as error:
        return None, f"no picture: {error}"
    return path, ""

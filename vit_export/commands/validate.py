"""`vit-export validate`: the gate again, wherever the artifact is now."""

from __future__ import annotations

import sys
from typing import Any

import click

from vit_export.commands.options import (
    foreign_preprocess,
    host_code_option,
    json_option,
    layout_option,
    preprocess_options,
    provider_option,
)
from vit_export.console import emit, progress_bar

BENCH_INSTALL = "pip install 'vit-export[bench]'"


@click.command()
@click.argument("artifact")
@click.option("--golden", metavar="FILE", help="By default NAME.golden.npz beside the artifact.")
@click.option("--weights", metavar="FILE", help="Compute the truth again from this checkpoint.")
@click.option("--trace", is_flag=True, help="Show the error of every block, as table and picture.")
@click.option("--plot", metavar="PNG", help="Of the trace; by default NAME.trace.png")
@layout_option
@preprocess_options
@provider_option
@host_code_option
@json_option
def validate(artifact: str, as_json: bool, **options: Any) -> None:
    """Run the gate again on an artifact; needs numpy and onnxruntime only."""
    from vit_export.report import comparison
    from vit_export.revalidation import revalidate

    with progress_bar() as progress:
        found = revalidate(
            artifact,
            golden=options["golden"],
            weights=options["weights"],
            layout=options["layout"],
            provider=options["provider"],
            host_code=options["host_code"],
            preprocess=foreign_preprocess(artifact, options),
            traced=options["trace"] or options["plot"] is not None,
            progress=progress,
        )
    wanted = (options["trace"] or options["plot"]) and found.blocks
    picture = _draw(artifact, found, options["plot"]) if wanted else None
    data = {"artifact": artifact, "passed": found.passed, **vars(found), "picture": picture}
    if not found.passed:
        data["error"] = f"{artifact} does not compute what its torch model does"
    emit(as_json, data, comparison(found))
    if not found.passed:
        click.echo(f"Error: {data['error']}", err=True)
        sys.exit(1)


def _draw(artifact: str, found: Any, plot: str | None) -> Any:
    """Draw the error per block; without matplotlib say what it takes, since the table is there."""
    from pathlib import Path

    path = Path(plot) if plot else Path(artifact).with_suffix(".trace.png")
    try:
        from vit_export.report.error_plot import trace_plot
    except ModuleNotFoundError as error:
        if plot:
            raise
        click.echo(f"no picture: {error.name} is not installed ({BENCH_INSTALL})", err=True)
        return None
    try:
        trace_plot(found.blocks, f"{Path(artifact).name} on {found.hop.provider}", path)
    except OSError as error:
        click.echo(f"no picture: cannot write {path}: {error.strerror or error}", err=True)
        return None
    return path

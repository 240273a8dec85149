"""`vit-export validate`: the gate again, wherever the artifact is now."""

from __future__ import annotations

import sys
from typing import Any

import click

from vit_export.commands.options import (
    foreign_preprocess,
    json_option,
    layout_option,
    preprocess_options,
    provider_option,
)
from vit_export.console import emit, progress_bar


@click.command()
@click.argument("artifact")
@click.option("--golden", metavar="FILE", help="By default NAME.golden.npz beside the artifact.")
@click.option("--weights", metavar="FILE", help="Compute the truth again from this checkpoint.")
@layout_option
@preprocess_options
@provider_option
@json_option
def validate(artifact: str, as_json: bool, **options: Any) -> None:
    """Run the gate again on an artifact; needs numpy and onnxruntime only."""
    from vit_export.pipeline import revalidate
    from vit_export.report import comparison

    with progress_bar() as progress:
        found = revalidate(
            artifact,
            golden=options["golden"],
            weights=options["weights"],
            layout=options["layout"],
            provider=options["provider"],
            preprocess=foreign_preprocess(artifact, options),
            progress=progress,
        )
    data = {"artifact": artifact, "passed": found.passed, **vars(found)}
    if not found.passed:
        data["error"] = f"{artifact} does not compute what its torch model does"
    emit(as_json, data, comparison(found))
    if not found.passed:
        click.echo(f"Error: {data['error']}", err=True)
        sys.exit(1)

"""`vit-export variants`: the architectures known by name."""

from __future__ import annotations

import click

from vit_export.cli.console import emit
from vit_export.cli.options import json_option
from vit_export.variants import VARIANTS


@click.command()
@json_option
def variants(as_json: bool) -> None:
    """List the architectures known by name."""
    from vit_export.cli.report.files import variants_text

    rows = [{**vars(c), "num_params": c.num_params} for c in VARIANTS.values()]
    emit(as_json, {"variants": rows}, variants_text(VARIANTS.values()))

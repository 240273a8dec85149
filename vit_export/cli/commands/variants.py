"""`vit-export variants`: list the architectures that have a name."""

import click

from vit_export.cli.console import emit
from vit_export.cli.option_fields import command
from vit_export.variants import find_variants, weights_license


@command()
@click.argument("words", nargs=-1)
def variants(words: tuple[str, ...], as_json: bool) -> None:
    """List the architectures that can be exported by name, by family.

    WORDS search in names, aliases and families: "variants dino".
    """
    from vit_export.cli.report.files import variants_text

    found = find_variants(words)
    rows = [
        {**vars(config), "family": family, "num_params": config.num_params,
         "license": weights_license(config)}
        for family, configs in found.items()
        for config in configs
    ]  # fmt: skip
    emit(as_json, {"variants": rows}, variants_text(found))

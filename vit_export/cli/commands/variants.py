"""`vit-export variants`: list the architectures that have a name."""

from vit_export.cli.console import emit
from vit_export.cli.option_fields import command
from vit_export.variants import VARIANTS


@command()
def variants(as_json: bool) -> None:
    """List the architectures that can be exported by name."""
    from vit_export.cli.report.files import variants_text

    rows = [{**vars(c), "num_params": c.num_params} for c in VARIANTS.values()]
    emit(as_json, {"variants": rows}, variants_text(VARIANTS.values()))

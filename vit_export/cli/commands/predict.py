"""`vit-export predict`: classify images."""

from __future__ import annotations

import click

from vit_export.cli.console import emit
from vit_export.cli.option_groups import GroupedCommand, option
from vit_export.cli.options import (
    OUTPUT,
    PreparationOptions,
    ProviderOptions,
    json_option,
    labels_of,
    labels_option,
    preparation_options,
    provider_options,
)


@click.command(cls=GroupedCommand)
@click.argument("artifact")
@click.argument("images", nargs=-1, required=True)
@preparation_options
@provider_options
@option("--top", group=OUTPUT, default=5, show_default=True, type=click.IntRange(min=1),
        help="Classes per image.")  # fmt: skip
@labels_option
@json_option
def predict(
    artifact: str,
    images: tuple[str, ...],
    preparation: PreparationOptions,
    run: ProviderOptions,
    top: int,
    labels: str | None,
    as_json: bool,
) -> None:
    """Classify images: files, folders or patterns such as "photos/*.jpg"."""
    from vit_export.cli.report.files import predictions_text
    from vit_export.runtime import load, load_engine

    preprocess = preparation.for_artifact(artifact)
    names = labels_of(labels) or None
    if run.trust_host_code:
        model = load_engine(artifact, provider=run.provider, allow_host_code=True,
                            preprocess=preprocess, labels=names)  # fmt: skip
    else:
        model = load(artifact, provider=run.provider, preprocess=preprocess, labels=names)
    found = list(zip(images, model.classify(list(images), top=top), strict=True))
    rows = [{"image": image, "provider": model.provider, "top": best} for image, best in found]
    lines = [predictions_text(found), f"provider: {model.provider}"]
    lines += [f"not {name}: {reason}" for name, reason in model.rejected.items()]
    emit(as_json, {"predictions": rows}, "\n".join(lines))

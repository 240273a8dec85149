"""`vit-export predict`: classify images."""

from __future__ import annotations

from typing import Any

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
    from vit_export.errors import ImageError
    from vit_export.images.folder import list_images
    from vit_export.runtime import load, load_engine

    preprocess, names = preparation.for_artifact(artifact), labels_of(labels) or None
    if run.trust_host_code:
        model = load_engine(
            artifact, provider=run.provider, preprocess=preprocess, labels=names,
            allow_host_code=True,
        )  # fmt: skip
    else:
        model = load(artifact, provider=run.provider, preprocess=preprocess, labels=names)
    files = [file for image in images for file in list_images(image)]
    classified: list[tuple[str, Any]] = []
    rows: list[dict[str, Any]] = []
    unreadable: list[ImageError] = []
    for file, result in zip(map(str, files), model.classify_each(files, top=top), strict=True):
        row: dict[str, Any] = {"image": file, "provider": model.provider}
        if isinstance(result, ImageError):
            unreadable.append(result)
            rows.append(row | {"error": result.message})
            continue
        classified.append((file, result))
        rows.append(row | {"top": result})
    lines = [predictions_text(classified)] if classified else []
    lines.append(f"provider: {model.provider}")
    lines += [f"not {name}: {reason}" for name, reason in model.rejected.items()]
    emit(
        as_json,
        {"predictions": rows},
        "\n".join(lines),
        failures=[error.message for error in unreadable],
        hint="; ".join(dict.fromkeys(error.hint for error in unreadable if error.hint)),
    )

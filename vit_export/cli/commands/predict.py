"""`vit-export predict`: images to labels."""

from __future__ import annotations

from typing import Any

import click

from vit_export.cli.console import emit
from vit_export.cli.options import (
    foreign_preprocess,
    host_code_option,
    json_option,
    labels_of,
    labels_option,
    preprocess_options,
    provider_option,
)


@click.command()
@click.argument("artifact")
@click.argument("images", nargs=-1, required=True)
@click.option("--top", default=5, show_default=True, type=click.IntRange(min=1))
@labels_option
@preprocess_options
@provider_option
@host_code_option
@json_option
def predict(
    artifact: str, images: tuple[str, ...], top: int, as_json: bool, **options: Any
) -> None:
    """Name what is on images."""
    from vit_export.cli.report.files import predictions_text
    from vit_export.runtime import load

    classifier = load(
        artifact,
        provider=options["provider"],
        preprocess=foreign_preprocess(artifact, options),
        labels=labels_of(options["labels"]) or None,
        allow_host_code=options["allow_host_code"],
    )
    found = list(zip(images, classifier.classify(list(images), top=top), strict=True))
    rows = [{"image": image, "provider": classifier.provider, "top": best} for image, best in found]
    text = f"{predictions_text(found)}\nprovider: {classifier.provider}"
    for name, reason in getattr(classifier.runner, "rejected", {}).items():
        text += f"\nnot {name}: {reason}"
    emit(as_json, {"predictions": rows}, text)

"""`vit-export predict`: classify images."""

from dataclasses import dataclass
from typing import Any

import click

from vit_export.cli.console import emit
from vit_export.cli.open_model import ModelOptions, image_files, provider_line
from vit_export.cli.option_fields import command, option
from vit_export.cli.options import LabelsOption


@dataclass(frozen=True, kw_only=True)
class _Options(LabelsOption, ModelOptions):
    top: int = option(
        "Output",
        "Classes per image; of a multi-label model, also all others with a score of 0.5 or more.",
        default=5,
        type=click.IntRange(min=1),
    )


@command(_Options)
@click.argument("artifact")
@click.argument("images", nargs=-1, required=True)
def predict(artifact: str, images: tuple[str, ...], options: _Options, as_json: bool) -> None:
    """Classify images: files, folders or patterns.

    A folder includes its subfolders; a pattern is e.g. "photos/*.jpg".
    """
    from vit_export.errors import ImageError

    model = options.open_model(artifact, options.class_names() or None)
    files = image_files(images)
    rows: list[dict[str, Any]] = []
    lines: list[str] = []
    unreadable: list[ImageError] = []
    for file, result in zip(files, model.classify_each(files, top=options.top), strict=True):
        row: dict[str, Any] = {"image": str(file), "provider": model.provider}
        if isinstance(result, ImageError):
            unreadable.append(result)
            rows.append(row | {"error": result.message})
        else:
            rows.append(row | {"top": result})
            lines += [str(file), *(f"  {100 * p.score:6.2f} %  {p.label}" for p in result)]
    lines.append(provider_line(model))
    emit(
        as_json,
        {"rejected": model.rejected, "predictions": rows},
        "\n".join(lines),
        failures=[error.message for error in unreadable],
        hint="; ".join(dict.fromkeys(error.hint for error in unreadable if error.hint)),
    )

"""`vit-export predict`: classify images."""

from dataclasses import dataclass
from typing import Any

import click

from vit_export.cli.console import emit
from vit_export.cli.option_fields import command, option
from vit_export.cli.options import LabelsOption, PreparationOptions, RunOptions


@dataclass(frozen=True, kw_only=True)
class _Options(LabelsOption, RunOptions, PreparationOptions):
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
    from vit_export.images.folder import list_images
    from vit_export.runtime import load, load_engine

    provider, labels = options.providers(artifact), options.class_names() or None
    preprocess = options.preprocess_of(artifact)
    if options.trust_host_code or options.runtime_cache is not None:
        model = load_engine(
            artifact,
            provider=provider,
            device=options.device,
            allow_host_code=options.trust_host_code,
            runtime_cache=options.runtime_cache,
            preprocess=preprocess,
            labels=labels,
        )
    else:
        model = load(artifact, provider=provider, device=options.device,
                     preprocess=preprocess, labels=labels)  # fmt: skip
    click.get_current_context().with_resource(model)  # closed in the end
    files = [file for image in images for file in list_images(image)]
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
    beside = f" ({count} nodes on shapes run on the CPU)" if (count := model.nodes_on_cpu) else ""
    lines.append(f"provider: {model.provider}{beside}")
    if options.provider != "auto":  # whose rejections are warnings
        lines += [f"not {name}: {reason}" for name, reason in model.rejected.items()]
    emit(
        as_json,
        {"predictions": rows},
        "\n".join(lines),
        failures=[error.message for error in unreadable],
        hint="; ".join(dict.fromkeys(error.hint for error in unreadable if error.hint)),
    )

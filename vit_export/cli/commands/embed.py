"""`vit-export embed`: compute the features of images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from vit_export.cli.console import emit
from vit_export.cli.open_model import ModelOptions, image_files, provider_line
from vit_export.cli.option_fields import command, option

SUFFIXES = ".npz, .npy, .csv or .jsonl"


@dataclass(frozen=True, kw_only=True)
class _Options(ModelOptions):
    normalize: bool = option("Output", "Scale each row to length 1, as for cosine similarity.")
    output: Path | None = option("Output", f"One row per image: {SUFFIXES}", "FILE")


@command(_Options)
@click.argument("artifact")
@click.argument("images", nargs=-1, required=True)
def embed(artifact: str, images: tuple[str, ...], options: _Options, as_json: bool) -> None:
    """Compute features of images: files, folders or patterns.

    Features are what the head reads. A folder includes its subfolders; a pattern is e.g.
    "photos/*.jpg".
    """
    import numpy as np

    from vit_export.cli.report.embeddings import check_embeddings_file, write_embeddings
    from vit_export.errors import ImageError

    if options.output is not None:
        check_embeddings_file(options.output)
    model, files = options.open_model(artifact), image_files(images)
    read, rows = list[str](), list[Any]()
    unreadable: list[ImageError] = []
    results = model.embed_each(files, normalize=options.normalize)
    for file, result in zip(files, results, strict=True):
        if isinstance(result, ImageError):
            unreadable.append(result)
        else:
            read.append(str(file))
            rows.append(result)
    data: dict[str, Any] = {"provider": model.provider, "rejected": model.rejected}
    lines = []
    if options.output is None:
        named = zip(read, rows, strict=True)
        data["embeddings"] = [{"image": name, "features": row.tolist()} for name, row in named]
        for name, row in zip(read, rows, strict=True):
            start = " ".join(f"{value:9.5f}" for value in row[:4])
            lines.append(
                f"{name}\n  {start} ...  {row.size} numbers, length {np.linalg.norm(row):.5g}"
            )
        if rows and not as_json:
            lines.append("hint: --output FILE or --json gives all numbers")
    elif rows:
        write_embeddings(options.output, read, np.stack(rows))
        data |= {"output": options.output, "shape": [len(rows), rows[0].size]}
        lines.append(f"{options.output}  {len(rows)} rows of {rows[0].size} numbers")
    lines.append(provider_line(model))
    emit(
        as_json,
        data,
        "\n".join(lines),
        failures=[error.message for error in unreadable],
        hint="; ".join(dict.fromkeys(error.hint for error in unreadable if error.hint)),
    )

"""Options that several commands share, and how their text is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vit_export.errors import UsageError
from vit_export.variants import CHOICES, IDENTITY

SEED = click.IntRange(0, 2**63 - 1)
json_option = click.option("--json", "as_json", is_flag=True, help="End with one JSON object.")
provider_option = click.option(
    "--provider",
    default="auto",
    show_default=True,
    help="cpu, cuda, tensorrt, tensorrt-rtx, or auto.",
)
host_code_option = click.option(
    "--trust-host-code",
    "allow_host_code",
    is_flag=True,
    help="Let a version compatible engine run the code in it.",
)
labels_option = click.option("--labels", metavar="FILE", help="Class names: lines, or JSON.")
layout_option = click.option("--layout", help="How the checkpoint names its tensors.")


def preprocess_options(command: Any) -> Any:
    """Options that say how images are prepared."""
    for option in (
        click.option("--interpolation", type=click.Choice(CHOICES["interpolation"])),
        click.option("--crop-pct", type=float, help="Crop size / resized short side."),
        click.option("--std", metavar="R,G,B", help="Of pixels in [0, 1]."),
        click.option("--mean", metavar="R,G,B", help="Of pixels in [0, 1]."),
    ):
        command = option(command)
    return command


def precision_options(command: Any) -> Any:
    """Options of a conversion to a narrower precision."""
    for option in (
        click.option("--budget", type=float, metavar="SHARE",
                     help="Of the weights that may stay fp32; a third by default."),
        click.option("--max-drop", type=float, metavar="POINTS",
                     help="Of top-1 accuracy that may be lost on --images."),
        click.option("--smooth", type=float, metavar="ALPHA",
                     help="SmoothQuant before int8, e.g. 0.5."),
        click.option("--percentile", type=float, help="Of absolute values; 99.99 by default."),
        click.option("--calibration-method", "method",
                     type=click.Choice(["percentile", "entropy", "max"])),
        click.option("--calibration", metavar="PATH",
                     help="Images that show the ranges of activations: folder or CSV."),
        click.option("--fp16-io", "half_io", is_flag=True, default=None,
                     help="Half-precision input and outputs."),
        click.option("--fp16-recipe", "recipe", type=click.Choice(["mixed", "all"])),
    ):  # fmt: skip
        command = option(command)
    return command


def precision_settings(options: dict[str, Any]) -> dict[str, Any]:
    """What `precision_options` were given, as fields of `QuantizeSettings`."""
    names = ("recipe", "half_io", "method", "percentile", "smooth", "max_drop", "budget")
    found = given(**{name: options[name] for name in names})
    return found | given(calibration=path_of(options["calibration"]))


def path_of(text: str | None) -> Path | None:
    """An option's path; `None` where it was not given."""
    return None if text is None else Path(text)


def given(**values: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in values.items() if value is not None}


def _settings(pairs: tuple[str, ...]) -> dict[str, str]:
    settings: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals:
            raise UsageError(f"--set {pair}: expected field=value, e.g. --set num_heads=8")
        if name in settings:
            raise UsageError(f"--set {name} is given twice")
        if name in IDENTITY:
            raise UsageError(f"--set {name}: says which variant it is, and cannot be set")
        settings[name] = value
    return settings


def overrides(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """Config fields from --set, and from options of their own."""
    settings = _settings(options["sets"])
    own = given(**{name: options[name] for name in names})
    for name in own.keys() & settings.keys():
        raise UsageError(f"{name} is given twice: with --set and with an option of its own")
    return settings | own


def labels_of(path: str | None) -> tuple[str, ...]:
    """Class names of a file; none where no file was given."""
    if path is None:
        return ()
    from vit_export.artifact.labels import read_labels

    return read_labels(path)


def preprocess_given(options: dict[str, Any]) -> dict[str, Any]:
    """What `preprocess_options` were given."""
    return given(**{k: options[k] for k in ("mean", "std", "crop_pct", "interpolation")})


def foreign_preprocess(artifact: str, options: dict[str, Any]) -> Any:
    """The image preparation given on the command line; `None` to take the file's own."""
    changes = preprocess_given(options)
    if not changes:
        return None
    from vit_export.artifact.read import read_preprocess

    return read_preprocess(artifact, changes)

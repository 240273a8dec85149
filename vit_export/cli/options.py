"""Options that several commands share, and the settings they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vit_export.cli.option_groups import option, option_group
from vit_export.errors import UsageError
from vit_export.variants import CHOICES, IDENTITY

if TYPE_CHECKING:  # these import numpy, and --help must not
    from vit_export.artifact.manifest import Preprocess
    from vit_export.quantization.settings import QuantizeSettings

SOURCE, PREPARATION, GRAPH = "Source", "Image preparation", "Graph"
PRECISION, RUN, OUTPUT = "Precision", "Run", "Output"
SEED = click.IntRange(0, 2**63 - 1)

json_option = option(
    "--json", "as_json", group=OUTPUT, is_flag=True,
    help="End with one JSON object on standard output.",
)  # fmt: skip
golden_option = option(
    "--golden", group=SOURCE, metavar="FILE",
    help="Golden file; by default NAME.golden.npz beside the artifact.",
)  # fmt: skip
layout_option = option(
    "--layout", group=SOURCE, help="Naming scheme of the checkpoint; recognised by default."
)
reset_head_option = option(
    "--reset-head", group=SOURCE, is_flag=True,
    help="Replace the head with a zero-initialised one, for a different number of classes.",
)  # fmt: skip
img_size_option = option(
    "--img-size", group=SOURCE, metavar="PX", help="e.g. 384, or 224x160 (height x width)."
)
set_option = option(
    "--set", "sets", group=SOURCE, multiple=True, metavar="FIELD=VALUE",
    help="Change any other config field.",
)  # fmt: skip
labels_option = option(
    "--labels", group=OUTPUT, metavar="FILE", help="Class names: one a line, or JSON."
)
external_data_option = option(
    "--external-data", group=OUTPUT, is_flag=True,
    help="Store weights beside the file; above 2 GiB they always are.",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ProviderOptions:
    """What runs an artifact."""

    provider: str
    trust_host_code: bool


provider_options = option_group(
    "run", ProviderOptions,
    option("--provider", group=RUN, default="auto", show_default=True,
           help="cpu, cuda, tensorrt, tensorrt-rtx, or auto for the best one here."),
    option("--trust-host-code", group=RUN, is_flag=True,
           help="Let a version-compatible engine run the code it contains."),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PreparationOptions:
    """How images are prepared, where the user says so."""

    mean: str | None
    std: str | None
    crop_pct: float | None
    interpolation: str | None

    def changes(self) -> dict[str, Any]:
        """Return the fields of a `Preprocess` that were given."""
        return given(**vars(self))

    def for_artifact(self, path: str) -> Preprocess | None:
        """Return the preparation for an artifact; `None` to take the file's own.

        Raises:
            UsageError: The file says nothing, and mean or std were not given either.
        """
        if not self.changes():
            return None
        from vit_export.artifact.read import read_preprocess

        return read_preprocess(path, self.changes())


preparation_options = option_group(
    "preparation", PreparationOptions,
    option("--mean", group=PREPARATION, metavar="R,G,B",
           help="Subtracted from pixels in [0, 1]; one number counts for every channel."),
    option("--std", group=PREPARATION, metavar="R,G,B", help="Divides pixels after that."),
    option("--crop-pct", group=PREPARATION, type=float,
           help="Side of the crop / short side of the resized image."),
    option("--interpolation", group=PREPARATION, type=click.Choice(CHOICES["interpolation"])),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PrecisionOptions:
    """How to convert to a narrower precision; `None` where an option was not given."""

    fp16_recipe: str | None
    fp16_io: bool | None
    calibration: str | None
    calibration_method: str | None
    percentile: float | None
    smooth: float | None
    max_drop: float | None
    budget: float | None

    def check_none_given(self) -> None:
        """Raise UsageError when an option was given, for an artifact that stays fp32."""
        for name in given(**vars(self)):
            raise UsageError(f"--{name.replace('_', '-')} is for a narrower --precision than fp32")

    def settings(
        self, precision: str, *, images: str | None, explain: bool = False
    ) -> QuantizeSettings:
        """Return the settings of a conversion.

        Args:
            precision: The narrower precision.
            images: Real images to compare classes on.
            explain: Measure every block even when the gate passes at once.
        """
        from vit_export.quantization.settings import QuantizeSettings

        changes = given(
            recipe=self.fp16_recipe,
            half_io=self.fp16_io,
            calibration=path_of(self.calibration),
            method=self.calibration_method,
            percentile=self.percentile,
            smooth=self.smooth,
            images=path_of(images),
            max_drop=self.max_drop,
            budget=self.budget,
        )
        return QuantizeSettings(precision=precision, explain=explain, **changes)


precision_options = option_group(
    "conversion", PrecisionOptions,
    option("--fp16-recipe", group=PRECISION, type=click.Choice(["mixed", "all"]),
           help="mixed (default) keeps the residual stream and the norms in fp32."),
    option("--fp16-io", group=PRECISION, is_flag=True, default=None,
           help="Make the input and the outputs float16 too."),
    option("--calibration", group=PRECISION, metavar="PATH",
           help="Images to measure activation ranges on: a folder or a digits CSV."),
    option("--calibration-method", group=PRECISION,
           type=click.Choice(["percentile", "entropy", "max"]),
           help="How a range becomes an INT8 threshold; percentile by default."),
    option("--percentile", group=PRECISION, type=float,
           help="Of absolute values that a threshold covers; 99.99 by default."),
    option("--smooth", group=PRECISION, type=float, metavar="ALPHA",
           help="SmoothQuant strength before int8, e.g. 0.5."),
    option("--max-drop", group=PRECISION, type=float, metavar="POINTS",
           help="Top-1 accuracy on --images that may be lost."),
    option("--budget", group=PRECISION, type=float, metavar="SHARE",
           help="Share of the weights that may stay fp32; a third by default."),
)  # fmt: skip


def path_of(text: str | None) -> Path | None:
    """Return an option's path; `None` where the option was not given."""
    return None if text is None else Path(text)


def given(**values: Any) -> dict[str, Any]:
    """Return the options that were given."""
    return {name: value for name, value in values.items() if value is not None}


def comma_separated(text: str) -> list[str]:
    """Split an option's text at commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def overrides(sets: tuple[str, ...], **named: Any) -> dict[str, Any]:
    """Return the config fields that --set and options of their own change.

    Args:
        sets: The texts `field=value` of --set.
        named: Values of options of their own, by field; `None` where one was not given.

    Raises:
        UsageError: A text is not `field=value`, or a field is given twice or cannot be set.
    """
    own = given(**named)
    fields: dict[str, Any] = {}
    for pair in sets:
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals:
            raise UsageError(f"--set {pair}: expected field=value, e.g. --set num_heads=8")
        if name in fields:
            raise UsageError(f"--set {name} is given twice")
        if name in IDENTITY:
            raise UsageError(f"--set {name}: this field names the variant, and cannot be set")
        fields[name] = value
    for name in own.keys() & fields.keys():
        raise UsageError(f"{name} is given twice: with --set and with an option of its own")
    return fields | own


def labels_of(path: str | None) -> tuple[str, ...]:
    """Read the class names in a file; none where no file was given."""
    if path is None:
        return ()
    from vit_export.artifact.labels import read_labels

    return read_labels(path)

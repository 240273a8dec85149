"""Options that several commands share, and the settings they stand for."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vit_export.artifact.vocabulary import PRECISIONS
from vit_export.cli.console import attributes
from vit_export.cli.option_fields import option
from vit_export.errors import UsageError
from vit_export.quantization.settings import METHODS, RECIPES, QuantizeSettings
from vit_export.variants import CHOICES, IDENTITY

if TYPE_CHECKING:  # it imports msgspec, and --help must answer at once
    from vit_export.artifact.preprocess import Preprocess


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """The network, and the weights it starts from."""

    variant: str | None = option("Source", "e.g. b16; `vit-export variants` lists them.", "NAME")
    weights: str | None = option("Source", "A file, a folder, hub, or hf:owner/name.", "CHECKPOINT")
    layout: str | None = option("Source", "Naming scheme of the checkpoint; recognised by default.")
    reset_head: bool = option(
        "Source", "Replace the head with a zero-initialised one, for a different number of classes."
    )
    img_size: str | None = option("Source", "e.g. 384, or 224x160 (height x width).", "PX")
    set: tuple[str, ...] = option("Source", "Change a config field.", "FIELD=VALUE")

    def overrides(self, **named: Any) -> dict[str, Any]:
        """Return the config fields that --set, --img-size and the named options change."""
        own = given(img_size=self.img_size, **named)
        fields: dict[str, Any] = {}
        for pair in self.set:
            name, equals, value = (part.strip() for part in pair.partition("="))
            if not equals:
                raise UsageError(f"--set {pair}: expected field=value, e.g. --set num_heads=8")
            if name in IDENTITY:
                raise UsageError(f"--set {name}: this field names the variant, and cannot be set")
            if name in fields:
                raise UsageError(f"--set {name} is given twice")
            if name in own:
                raise UsageError(f"{name} is given twice: with --set and with an option of its own")
            fields[name] = value
        return fields | own


@dataclass(frozen=True, kw_only=True)
class ProviderOptions:
    """What runs an artifact."""

    provider: str = option(
        "Run",
        "auto, cpu, cuda, tensorrt, tensorrt-rtx, openvino, coreml, directml, qnn, xnnpack or "
        "migraphx; of several, the first that is active.",
        "NAME,...",
        default="auto",
    )
    device: int | None = option("Run", "Number of the GPU, from 0.", "N", type=click.IntRange(0))
    trust_host_code: bool = option("Run", "Let a version-compatible engine run its own code.")

    def providers(self, *artifacts: str) -> list[str]:
        """Return the requested providers; disable TF32 of ONNX Runtime's TensorRT.

        For this process and its children: NVIDIA's libraries read the variable once, when loaded.
        """
        names = comma_separated(self.provider)
        if not names:
            raise UsageError("--provider: expected at least one", hint="e.g. --provider cuda,cpu")
        if twice := [name for name in names if names.count(name) > 1]:
            raise UsageError(f"--provider {twice[0]} is given twice")
        if "auto" in names and len(names) > 1:
            raise UsageError(
                f"--provider {self.provider}: auto chooses the provider by itself",
                hint="leave auto out, or give it alone",
            )
        if self.device is not None and "openvino" in names and {*names} <= {"openvino", "cpu"}:
            raise UsageError(
                f"--device {self.device} is not for OpenVINO, which names its devices",
                hint='in Python: vit_export.runtime.load("model.onnx", provider="openvino", '
                'options={"device_type": "GPU.1"})',
            )
        onnx_given = any(artifact.endswith(".onnx") for artifact in artifacts)
        if onnx_given and any(name.startswith("tensorrt") for name in names):
            from vit_export.runtime.onnxruntime.options import TF32_VARIABLE

            os.environ.setdefault(TF32_VARIABLE, "0")
        return names


@dataclass(frozen=True, kw_only=True)
class RunOptions(ProviderOptions):
    """What runs an artifact, and where an engine's compiled kernels are kept."""

    runtime_cache: Path | None = option(
        "Run", "Kernels that TensorRT-RTX compiled here, read and written back.", "FILE"
    )


@dataclass(frozen=True, kw_only=True)
class PreparationOptions:
    """How images are prepared; `None` where an option was not given."""

    mean: str | None = option(
        "Image preparation",
        "Subtracted from pixels in [0, 1]; one number counts for every channel.",
        "R,G,B",
    )
    std: str | None = option("Image preparation", "Divides pixels after that.", "R,G,B")
    crop_pct: float | None = option("Image preparation", "Crop side / short side of the image.")
    crop_mode: str | None = option(
        "Image preparation",
        "squash resizes without keeping the aspect.",
        choices=CHOICES["crop_mode"],
    )
    interpolation: str | None = option("Image preparation", choices=CHOICES["interpolation"])

    def preparation(self) -> dict[str, Any]:
        """Return the fields of a `Preprocess` that were given."""
        return given(**attributes(self, "mean std crop_pct crop_mode interpolation"))

    def preprocess_of(self, artifact: str) -> "Preprocess | None":
        """Return the preparation of an artifact with the given fields; `None` if there are none."""
        changes = self.preparation()
        if not changes:
            return None
        from vit_export.artifact.read import read_preprocess

        return read_preprocess(artifact, changes)


@dataclass(frozen=True, kw_only=True)
class PrecisionOptions:
    """How to convert to a narrower precision; `None` where an option was not given."""

    precision: str = option("Precision", choices=PRECISIONS[1:], required=True)
    fp16_recipe: str | None = option(
        "Precision", "mixed (default) keeps residual stream and norms fp32.", choices=RECIPES
    )
    fp16_io: bool | None = option("Precision", "Make the input and the outputs float16 too.")
    calibration: Path | None = option(
        "Precision",
        "Images to measure activation ranges on: folder, pattern or digits CSV.",
        "PATH",
    )
    calibration_method: str | None = option("Precision", "percentile by default.", choices=METHODS)
    percentile: float | None = option(
        "Precision",
        "Percentile of the absolute activations that becomes the threshold; 99.99 by default.",
    )
    smooth: float | None = option("Precision", "SmoothQuant strength for int8, e.g. 0.5.", "ALPHA")
    max_drop: float | None = option("Precision", "Largest accuracy drop on --images.", "POINTS")
    budget: float | None = option(
        "Precision", "Share of the weights that may stay fp32; a third by default.", "SHARE"
    )

    def check_stays_fp32(self) -> None:
        """Raise UsageError when an option of a narrower precision was given."""
        for field in PrecisionOptions.__dataclass_fields__:
            if field != "precision" and getattr(self, field) is not None:
                raise UsageError(
                    f"--{field.replace('_', '-')} is for a narrower --precision than fp32"
                )

    def quantize_settings(self, *, images: Path | None, explain: bool = False) -> QuantizeSettings:
        """Return the settings of a conversion; classes are compared on the images."""
        changes = given(
            recipe=self.fp16_recipe,
            half_io=self.fp16_io,
            method=self.calibration_method,
            images=images,
            calibration=self.calibration,
            percentile=self.percentile,
            smooth=self.smooth,
            max_drop=self.max_drop,
            budget=self.budget,
        )
        return QuantizeSettings(precision=self.precision, explain=explain, **changes)


@dataclass(frozen=True, kw_only=True)
class LabelsOption:
    """Where class names come from."""

    labels: str | None = option("Output", "Class names: one a line, or JSON.", "FILE")

    def class_names(self) -> tuple[str, ...]:
        """Read the class names; none where no file was given."""
        if self.labels is None:
            return ()
        from vit_export.artifact.labels import read_labels

        return read_labels(self.labels)


def given(**values: Any) -> dict[str, Any]:
    """Return the options that were given."""
    return {name: value for name, value in values.items() if value is not None}


def comma_separated(text: str) -> list[str]:
    """Split an option's text at commas."""
    return [word.strip() for word in text.split(",") if word.strip()]

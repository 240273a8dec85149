"""Settings of the door `quantize`."""

import math
import os
from dataclasses import dataclass

from vit_export.artifact.vocabulary import HALF_PRECISIONS, INT8_PRECISIONS
from vit_export.errors import UsageError, check_known

PRECISIONS = (*HALF_PRECISIONS, *INT8_PRECISIONS)
RECIPES = ("mixed", "all")
METHODS = ("percentile", "entropy", "max")
PERCENTILE = 99.99
_MIXED = "the default recipe keeps in fp32 what it would be needed for"
_NO_CALIBRATION = {
    "int8": "dynamic int8 measures the range of every activation while it runs",
    "fp16": _MIXED,
    "bf16": _MIXED,
}


@dataclass(frozen=True, kw_only=True)
class QuantizeSettings:
    """How to convert an fp32 artifact, and the limits that the result must keep to.

    Attributes:
        precision: `"fp16"`, `"bf16"`, `"int8"` (dynamic) or `"int8-static"`.
        recipe: For half precision: `"mixed"` keeps the residual stream and the norms in fp32;
            `"all"` converts them too, where their range allows it.
        half_io: Whether inputs and outputs are half precision too.
        calibration: Images that activation ranges are measured on: a folder, a pattern such as
            `"photos/*.jpg"`, or a digits CSV.
        method: How a range becomes a clipping threshold: `"percentile"` (the default),
            `"entropy"` or `"max"`.
        percentile: Percentage of absolute values below the threshold; 99.99 by default.
        smooth: Strength of SmoothQuant (arXiv 2211.10438), 0 to 1; `None` for none.
        images: Real images to measure top-1 agreement on, given in the same way.
        max_drop: Largest drop of top-1 accuracy on them in percentage points. They need labels:
            folders named after the classes, or a digits CSV with a `label` column.
        budget: Largest share of the weights that may stay fp32 to make the gate pass.
        explain: Whether to measure every block alone even when the gate passes at once.

    Raises:
        UsageError: On construction, when a value is impossible or two settings contradict.
    """

    precision: str
    recipe: str = "mixed"
    half_io: bool = False
    calibration: str | os.PathLike[str] | None = None
    method: str | None = None
    percentile: float | None = None
    smooth: float | None = None
    images: str | os.PathLike[str] | None = None
    max_drop: float | None = None
    budget: float = 1 / 3
    explain: bool = False

    def __post_init__(self) -> None:
        for what, value, known in (
            ("precision", self.precision, PRECISIONS),
            ("recipe", self.recipe, RECIPES),
            ("method", self.method or METHODS[0], METHODS),
        ):
            check_known(what, value, known)
        for option, number, least, most, expected in (
            ("budget", self.budget, 0, 1, "a share of the weights, 0 to 1"),
            ("percentile", self.percentile, math.ulp(0), 100, "above 0, at most 100"),
            ("smooth", self.smooth, 0, 1, "a strength, 0 to 1"),
            ("max-drop", self.max_drop, 0, math.inf, "percentage points, at least 0"),
        ):
            if number is not None and not least <= number <= most:
                raise UsageError(f"--{option} {number:g}: expected {expected}")
        static, half = self.precision == "int8-static", self.precision in HALF_PRECISIONS
        for option, given, fits, precisions in (
            ("fp16-io", self.half_io, self.precision == "fp16", "fp16"),
            ("calibration-method", self.method is not None, static, "int8-static"),
            ("percentile", self.percentile is not None, static, "int8-static"),
            ("fp16-recipe", self.recipe != "mixed", half, "fp16 and bf16"),
            ("smooth", self.smooth is not None, not half, "int8 and int8-static"),
        ):
            if given and not fits:
                raise UsageError(f"--{option} is for {precisions}, not for {self.precision}")
        if self.percentile is not None and self.method not in (None, "percentile"):
            raise UsageError(f"--percentile is not for --calibration-method {self.method}")
        if self.max_drop is not None and self.images is None:
            raise UsageError("--max-drop needs real images", hint="add --images DIR")
        reader = "--smooth" if self.smooth is not None else self.precision
        if self.calibration is None and reader in ("--smooth", "int8-static"):
            raise UsageError(
                f"{reader} needs images to measure the ranges of activations on",
                hint="give a folder of them with --calibration DIR",
            )
        if self.calibration is not None and reader in _NO_CALIBRATION and self.recipe != "all":
            raise UsageError(
                "--calibration is for int8-static, --smooth and --fp16-recipe all: "
                f"{_NO_CALIBRATION[reader]}"
            )

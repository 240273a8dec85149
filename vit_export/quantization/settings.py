"""Settings of the door `quantize`."""

from __future__ import annotations

import os
from dataclasses import dataclass

from vit_export.artifact.vocabulary import HALF_PRECISIONS, INT8_PRECISIONS
from vit_export.errors import UsageError, nearest

PRECISIONS = (*HALF_PRECISIONS, *INT8_PRECISIONS)
RECIPES = ("mixed", "all")
METHODS = ("percentile", "entropy", "max")
PERCENTILE = 99.99
BUDGET = 1 / 3


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
        max_drop: Largest drop of top-1 accuracy on them in percentage points; of agreement, where
            they have no labels.
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
    budget: float = BUDGET
    explain: bool = False

    def __post_init__(self) -> None:
        for what, value, known in (
            ("precision", self.precision, PRECISIONS),
            ("recipe", self.recipe, RECIPES),
            ("method", self.method or METHODS[0], METHODS),
        ):
            if value not in known:
                raise UsageError(
                    f"unknown {what} {value!r}{nearest(value, known)} (known: {', '.join(known)})"
                )
        if not 0 <= self.budget <= 1:
            raise UsageError(f"--budget {self.budget:g}: expected a share of the weights, 0 to 1")
        if self.percentile is not None and not 0 < self.percentile <= 100:
            raise UsageError(f"--percentile {self.percentile:g}: expected above 0, at most 100")
        if self.smooth is not None and not 0 <= self.smooth <= 1:
            raise UsageError(f"--smooth {self.smooth:g}: expected a strength, 0 to 1")
        if self.max_drop is not None and self.images is None:
            raise UsageError("--max-drop needs real images", hint="add --images DIR")
        if self.max_drop is not None and self.max_drop < 0:
            raise UsageError(
                f"--max-drop {self.max_drop:g}: expected percentage points, at least 0"
            )
        self._check_precision_options()
        self._check_calibration()

    @property
    def is_half(self) -> bool:
        """Whether the precision is FP16 or BF16."""
        return self.precision in HALF_PRECISIONS

    def _check_precision_options(self) -> None:
        """Raise UsageError for an option of another precision."""
        if self.half_io and self.precision != "fp16":
            why = ": numpy has no bfloat16" if self.precision == "bf16" else ""
            raise UsageError(f"--fp16-io is for fp16, not for {self.precision}{why}")
        for option, value in (("calibration-method", self.method), ("percentile", self.percentile)):
            if value is not None and self.precision != "int8-static":
                raise UsageError(f"--{option} is for int8-static, not for {self.precision}")
        if self.percentile is not None and self.method not in (None, "percentile"):
            raise UsageError(f"--percentile is not for --calibration-method {self.method}")
        if not self.is_half and self.recipe != "mixed":
            raise UsageError(f"--fp16-recipe is for fp16 and bf16, not for {self.precision}")
        if self.is_half and self.smooth is not None:
            raise UsageError(f"--smooth is for int8 and int8-static, not for {self.precision}")

    def _check_calibration(self) -> None:
        """Raise UsageError where calibration images are missing, or nothing needs them."""
        if self.calibration is None:
            option = "--smooth" if self.smooth is not None else self.precision
            if option in ("--smooth", "int8-static"):
                raise UsageError(
                    f"{option} needs images to measure the ranges of activations on",
                    hint="give a folder of them with --calibration DIR",
                )
        elif self.precision == "int8" and self.smooth is None:
            raise UsageError(
                "--calibration is for int8-static, --smooth and --fp16-recipe all: dynamic int8 "
                "measures the range of every activation while it runs"
            )
        elif self.is_half and self.recipe != "all":
            raise UsageError(
                "--calibration is for int8 and --fp16-recipe all: the default recipe of "
                f"{self.precision} keeps in fp32 what it would be needed for"
            )

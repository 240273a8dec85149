"""What a narrower artifact is asked to be."""

from __future__ import annotations

import os
from dataclasses import dataclass

from vit_export.errors import UsageError, nearest

HALVES = ("fp16", "bf16")
INTEGERS = ("int8", "int8-static")
PRECISIONS = (*HALVES, *INTEGERS)
RECIPES = ("mixed", "all")
METHODS = ("percentile", "entropy", "max")
PERCENTILE = 99.99
BUDGET = 1 / 3


@dataclass(frozen=True, kw_only=True)
class QuantizeSettings:
    """How to convert, and what the result has to keep to.

    Attributes:
        precision: `"fp16"`, `"bf16"`, `"int8"` (dynamic) or `"int8-static"`.
        recipe: Of half precision: `"mixed"` keeps the residual stream and the norms in fp32,
            `"all"` does not, where their range allows it.
        half_io: Whether inputs and outputs are of half precision too.
        calibration: Images that show the ranges of activations: a folder, or a digits CSV.
        method: How a range becomes a threshold: `"percentile"` (the default), `"entropy"` or
            `"max"`.
        percentile: Of absolute values that the threshold covers; 99.99 by default.
        smooth: Strength of SmoothQuant (arXiv 2211.10438), 0 to 1; `None` for none.
        images: Real images to measure top-1 agreement on: a folder, or a digits CSV.
        max_drop: Percentage points of top-1 accuracy that may be lost on them; of agreement,
            where they have no labels.
        budget: Largest share of the weights that may stay fp32 to make the gate pass.
        explain: Whether to measure every block alone even where the gate passes at once.

    Raises:
        UsageError: On construction, when these contradict each other.
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
            raise UsageError(f"--budget {self.budget:g}: a share of the weights, 0 to 1")
        if self.percentile is not None and not 0 < self.percentile <= 100:
            raise UsageError(f"--percentile {self.percentile:g}: above 0, at most 100")
        if self.smooth is not None and not 0 <= self.smooth <= 1:
            raise UsageError(f"--smooth {self.smooth:g}: a strength, 0 to 1")
        if self.max_drop is not None and self.images is None:
            raise UsageError("--max-drop speaks of real images: give them with --images")
        if self.max_drop is not None and self.max_drop < 0:
            raise UsageError(f"--max-drop {self.max_drop:g}: percentage points, at least 0")
        self._check_of_another_precision()

    def _check_of_another_precision(self) -> None:
        half = self.precision in HALVES
        if self.half_io and self.precision == "bf16":
            raise UsageError("--fp16-io is for fp16: numpy has no bfloat16 to feed or to read")
        for option, value in (("calibration-method", self.method), ("percentile", self.percentile)):
            if value is not None and self.precision != "int8-static":
                raise UsageError(f"--{option} is for int8-static, not for {self.precision}")
        if self.percentile is not None and self.method not in (None, METHODS[0]):
            raise UsageError(f"--percentile is not for --calibration-method {self.method}")
        if not half and (self.recipe != "mixed" or self.half_io):
            option = (
                "--fp16-io is for fp16" if self.half_io else ("--fp16-recipe is for fp16 and bf16")
            )
            raise UsageError(f"{option}, not for {self.precision}")
        if half and self.smooth is not None:
            raise UsageError(f"--smooth is for int8 and int8-static, not for {self.precision}")
        if self.calibration is None:
            for needs, what in (
                (self.precision == "int8-static", "int8-static"),
                (self.smooth is not None, "--smooth"),
            ):
                if needs:
                    raise UsageError(
                        f"{what} needs images that show the ranges of activations: "
                        "give a folder of them with --calibration DIR"
                    )
        elif self.precision == "int8" and self.smooth is None:
            raise UsageError(
                "--calibration is for int8-static, --smooth and --fp16-recipe all: dynamic int8 "
                "finds the range of every activation as it runs"
            )
        elif half and self.recipe != "all":
            raise UsageError(
                f"--calibration is for int8 and --fp16-recipe all: the default recipe of "
                f"{self.precision} keeps wide what has no known range"
            )

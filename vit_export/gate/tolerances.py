"""Limits that an artifact of each precision must keep to pass its gate."""

from dataclasses import dataclass

from vit_export.errors import ArtifactError, nearest


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """Limits on the distance from the float64 reference `y64`.

    With `e` the distance of torch's own arithmetic in this precision, `max|y - y64|` may be at
    most `max(factor * e, floor * max|y64|)`, and never more than `cap * max|y64|`.
    """

    precision: str
    baseline: str = ""  # field of the golden file that holds `e`; empty where torch has none
    torch_name: str = ""  # of that arithmetic
    factor: float = 1.0
    floor: float = 0.0
    cap: float = float("inf")
    min_cosine: float | None = None  # between an output and the reference
    max_scale_error: float | None = None  # an output wrong by a factor has a cosine of 1
    min_agreement: float | None = None  # share of real images with the top-1 class of fp32
    # Share of max|y64| by which a row may change with its neighbours, where there is no baseline.
    # None where rows share one activation scale: their change is certified, and has no limit.
    row_share: float | None = None

    def tolerance(self, e: float | None, largest: float) -> float | None:
        """Return the largest distance allowed; `None` where distance does not decide.

        `e` is infinite where torch overflows; `largest` is `max|y64|`.
        """
        if not self.baseline:
            return None
        own = self.factor * (e if e is not None else float("inf"))
        return min(max(own, self.floor * largest), self.cap * largest)

    def row_tolerance(self, e: float | None, largest: float) -> float | None:
        """Return how far a row may change with its place and neighbours; `None` for no limit."""
        if self.baseline:
            return self.tolerance(e, largest)
        return None if self.row_share is None else self.row_share * largest


_FP32 = Tolerances(
    precision="fp32", baseline="e32", torch_name="torch float32", factor=4, floor=1e-6
)
_FP16 = Tolerances(
    precision="fp16", baseline="e16", torch_name="torch float16", factor=2, floor=1e-6, cap=1e-2,
    min_cosine=0.9995, min_agreement=0.99,
)  # fmt: skip
# bfloat16 has 3 bits less than float16: 8 times the distance, 64 times the angle squared
_BF16 = Tolerances(
    precision="bf16", baseline="ebf16", torch_name="torch bfloat16", factor=2, floor=1e-6,
    cap=8e-2, min_cosine=0.968, min_agreement=0.99,
)  # fmt: skip
_INT8 = Tolerances(precision="int8", min_cosine=0.99, max_scale_error=0.02, min_agreement=0.99)
_INT8_STATIC = Tolerances(
    precision="int8-static", min_cosine=0.99, max_scale_error=0.02, min_agreement=0.99,
    row_share=1e-2,
)  # fmt: skip
TOLERANCES = {t.precision: t for t in (_FP32, _FP16, _BF16, _INT8, _INT8_STATIC)}


def tolerances_of(precision: str, *, source: str) -> Tolerances:
    """Return the limits of a precision that the manifest of `source` names."""
    if precision not in TOLERANCES:
        raise ArtifactError(
            f"{source}: its precision is {precision!r}, expected one of {', '.join(TOLERANCES)}"
            f"{nearest(precision, TOLERANCES)}",
            hint="if a newer vit-export wrote the file: pip install -U vit-export",
        )
    return TOLERANCES[precision]

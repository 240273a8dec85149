"""What an artifact of each precision has to keep to, so that its gate passes."""

from __future__ import annotations

from dataclasses import dataclass

from vit_export.errors import ArtifactError, nearest


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """Limits on the distance from the float64 oracle `y64`.

    With `e` the distance of torch's own arithmetic in this precision, `max|y - y64|` may be at
    most `max(factor * e, floor * max|y64|)`, and never more than `cap * max|y64|`.

    Attributes:
        precision: e.g. `"fp16"`.
        baseline: Which distance of the golden file `e` is; empty where torch has no such
            arithmetic, and cosine and top-1 agreement decide.
        torch_name: torch's name of that arithmetic.
        factor: How many times torch's own distance is allowed.
        floor: Share of `max|y64|` that is allowed always.
        cap: Share of `max|y64|` that is never exceeded.
        min_cosine: Smallest cosine similarity of an output with the oracle.
        min_agreement: Smallest share of real images with the same top-1 class as in fp32.
        rows_depend: Whether rows of a batch may depend on their neighbours, because they share
            one activation scale; that is then measured and certified, not refused.
    """

    precision: str
    baseline: str = ""
    torch_name: str = ""
    factor: float = 1.0
    floor: float = 0.0
    cap: float = float("inf")
    min_cosine: float | None = None
    min_agreement: float | None = None
    rows_depend: bool = False

    def tolerance(self, e: float | None, largest: float) -> float | None:
        """Largest distance allowed; `None` where distance does not decide.

        Args:
            e: torch's own distance; infinite where it overflows.
            largest: `max|y64|`.
        """
        if not self.baseline:
            return None
        own = self.factor * (e if e is not None else float("inf"))
        return min(max(own, self.floor * largest), self.cap * largest)

    def row_tolerance(self, e: float | None, largest: float) -> float | None:
        """How far a row may move with its place and neighbours; `None` where it may."""
        if self.rows_depend:
            return None
        return self.tolerance(e, largest) if self.baseline else self.cap * largest


_FP16 = Criterion(
    precision="fp16", baseline="e16", torch_name="torch float16", factor=2, floor=1e-6, cap=1e-2,
    min_cosine=0.9995, min_agreement=0.99,
)  # fmt: skip
# bfloat16 has 3 bits less than float16: 8 times the distance, 64 times the angle squared
_BF16 = Criterion(
    precision="bf16", baseline="ebf16", torch_name="torch bfloat16", factor=2, floor=1e-6,
    cap=8e-2, min_cosine=0.968, min_agreement=0.99,
)  # fmt: skip
CRITERIA = {
    c.precision: c
    for c in (
        Criterion(
            precision="fp32", baseline="e32", torch_name="torch float32", factor=4, floor=1e-6
        ),
        _FP16,
        _BF16,
        Criterion(precision="int8", min_cosine=0.99, min_agreement=0.99, rows_depend=True),
        Criterion(precision="int8-static", cap=1e-2, min_cosine=0.99, min_agreement=0.99),
    )
}


def criterion_of(precision: str, *, source: str) -> Criterion:
    """The criterion of a precision.

    Raises:
        ArtifactError: No such precision; `source` names the file that says so.
    """
    if precision not in CRITERIA:
        raise ArtifactError(
            f"{source}: its precision is {precision!r}, which this vit-export does not know"
            f"{nearest(precision, CRITERIA)} (known: {', '.join(CRITERIA)})"
        )
    return CRITERIA[precision]

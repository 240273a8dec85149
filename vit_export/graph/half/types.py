"""The two half precisions, and what they do to weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Half:
    """A floating-point type of 16 bits.

    Attributes:
        dtype: Of ONNX.
        dtype_name: numpy's name.
        largest: Largest finite value.
        wide_ops: Operators that stay in float32 in this type.
    """

    dtype: ir.DataType
    dtype_name: str
    largest: float
    wide_ops: frozenset[str] = frozenset()

    def round(self, values: NDArray[np.float32]) -> NDArray[np.generic]:
        """Values as this type, to nearest even; what lies beyond becomes infinite."""
        with np.errstate(over="ignore"):
            return values.astype(self.dtype.numpy())


HALVES = {
    "fp16": Half(dtype=ir.DataType.FLOAT16, dtype_name="float16", largest=65504.0),
    # ONNX knows no bfloat16 Conv before opset 22, and ONNX Runtime has no kernel for one
    "bf16": Half(
        dtype=ir.DataType.BFLOAT16,
        dtype_name="bfloat16",
        largest=3.3895313892515355e38,
        wide_ops=frozenset({"Conv"}),
    ),
}


@dataclass(frozen=True)
class WeightLoss:
    """What a conversion does to one weight.

    Attributes:
        size: Number of values.
        overflow: How many become infinite.
        flushed: How many become zero and were not.
    """

    size: int
    overflow: int
    flushed: int


def weight_losses(graph: ir.Graph, half: Half) -> dict[str, WeightLoss]:
    """Look at every float32 weight, one at a time."""
    return {
        name: _loss(value.const_value.numpy(), half)
        for name, value in graph.initializers.items()
        if value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT
    }


def _loss(values: NDArray[np.float32], half: Half) -> WeightLoss:
    rounded = half.round(values)
    return WeightLoss(
        size=values.size,
        overflow=int((~np.isfinite(rounded.astype(np.float32)) & np.isfinite(values)).sum()),
        flushed=int(((rounded == 0) & (values != 0)).sum()),
    )

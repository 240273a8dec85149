"""The two half precisions, and how many weights they lose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Half:
    """A floating-point type of 16 bits.

    Attributes:
        dtype: ONNX type.
        dtype_name: numpy's name.
        largest: Largest finite value.
        wide_ops: Operators that stay in float32.
    """

    dtype: ir.DataType
    dtype_name: str
    largest: float
    wide_ops: frozenset[str] = frozenset()

    def round(self, values: NDArray[np.float32]) -> NDArray[np.generic]:
        """Round values to this type, half to even; larger ones become infinite."""
        with np.errstate(over="ignore"):
            return values.astype(self.dtype.numpy())


HALVES = {
    "fp16": Half(dtype=ir.DataType.FLOAT16, dtype_name="float16", largest=65504.0),
    # ONNX has no bfloat16 Conv before opset 22, and ONNX Runtime has no kernel for one
    "bf16": Half(
        dtype=ir.DataType.BFLOAT16,
        dtype_name="bfloat16",
        largest=3.3895313892515355e38,
        wide_ops=frozenset({"Conv"}),
    ),
}


@dataclass(frozen=True)
class WeightLoss:
    """What a conversion loses of one weight.

    Attributes:
        size: Number of values.
        overflow: Number of finite values that become infinite.
        flushed: Number of values other than 0 that become 0.
    """

    size: int
    overflow: int
    flushed: int


def weight_losses(graph: ir.Graph, half: Half) -> dict[str, WeightLoss]:
    """Return the losses of every float32 weight by name; one weight at a time is read."""
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

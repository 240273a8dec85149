"""The two half precisions, and how many weights they lose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Half:
    """A floating-point type of 16 bits."""

    dtype: ir.DataType
    largest: float  # finite value
    wide_ops: frozenset[str] = frozenset()  # operators that stay in float32

    def round(self, values: NDArray[np.float32]) -> NDArray[np.generic]:
        """Round values to this type, half to even; larger ones become infinite."""
        with np.errstate(over="ignore"):
            return values.astype(self.dtype.numpy())


HALVES = {
    "fp16": Half(dtype=ir.DataType.FLOAT16, largest=65504.0),
    # ONNX has no bfloat16 Conv before opset 22, and ONNX Runtime has no kernel for one
    "bf16": Half(
        dtype=ir.DataType.BFLOAT16,
        largest=3.3895313892515355e38,
        wide_ops=frozenset({"Conv"}),
    ),
}


class WeightLoss(NamedTuple):
    """What a conversion loses of one weight, in numbers of values."""

    size: int
    overflow: int  # finite values that become infinite
    flushed: int  # values other than 0 that become 0


def weight_losses(graph: ir.Graph, half: Half) -> dict[str, WeightLoss]:
    """Return the losses of every float32 weight by name; one weight at a time is read."""
    losses = {}
    for name, value in graph.initializers.items():
        if value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT:
            values = value.const_value.numpy()
            rounded = half.round(values)
            overflow = np.isfinite(values) & ~np.isfinite(rounded.astype(np.float32))
            flushed = (values != 0) & (rounded == 0)
            losses[name] = WeightLoss(values.size, int(overflow.sum()), int(flushed.sum()))
    return losses

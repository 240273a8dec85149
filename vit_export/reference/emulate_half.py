"""Emulate torch's float16 and bfloat16 on machines whose kernels for them are slow or missing.

Parameters are rounded to the half type, and so is the result of every operation; between two
roundings the arithmetic is float32. torch's GPU kernels do the same: products accumulate in
float32, and softmax, GELU and layer norm compute in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from vit_export.reference.blockwise import converted
from vit_export.reference.outputs import Outputs


class Rounding(TorchDispatchMode):
    """Round every float32 result to a half type; views are left alone."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype = dtype

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        returns = func._schema.returns
        if any(r.alias_info is not None and not r.alias_info.is_write for r in returns):
            return result  # a view of something that is rounded already
        return tree_map_only(Tensor, lambda x: round_to(x, self.dtype), result)


def round_to(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Round a float32 tensor to a half type and return float32; other tensors are unchanged."""
    return x.to(dtype).to(torch.float32) if x.dtype == torch.float32 else x


@contextmanager
def in_half(model: Outputs, dtype: torch.dtype) -> Iterator[None]:
    """Compute as torch does in a half type."""
    with converted(model, lambda x: round_to(x, dtype)), Rounding(dtype):
        yield

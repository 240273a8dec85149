"""torch's own half precision, on a machine whose float16 kernels are slow or missing.

Parameters are rounded to the half type, and so is the result of every operation; between two
roundings the arithmetic is float32. That is what torch's float16 and bfloat16 kernels do on a GPU:
products accumulate in float32, and softmax, GELU and layer norm compute in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from vit_export.reference.outputs import Outputs


class Rounding(TorchDispatchMode):
    """While active, every float32 result is rounded to a half type; views are left alone."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype = dtype

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        returns = func._schema.returns
        if any(r.alias_info is not None and not r.alias_info.is_write for r in returns):
            return result  # a view: what it shows is rounded, or is a parameter that was
        return tree_map_only(Tensor, self._round, result)

    def _round(self, x: Tensor) -> Tensor:
        return round_to(x, self.dtype)


def round_to(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A float32 tensor rounded to a half type, as float32; other tensors as they are."""
    return x.to(dtype).to(torch.float32) if x.dtype == torch.float32 else x


@contextmanager
def in_half(model: Outputs, dtype: torch.dtype) -> Iterator[None]:
    """Compute as torch does in a half type while the context lasts.

    The parameters of a block are rounded while it runs, so that one block is held twice.
    """
    blocks = [model.module.get_submodule(tap) for tap in model.taps]
    in_blocks = {id(inner) for block in blocks for inner in block.modules()}
    outside = [inner for inner in model.module.modules() if id(inner) not in in_blocks]
    with ExitStack() as stack:
        for block in blocks:
            held = _Held(list(block.modules()), dtype)
            stack.callback(block.register_forward_pre_hook(held.round).remove)
            stack.callback(block.register_forward_hook(held.restore).remove)
            stack.callback(held.restore)  # where the block failed
        rest = _Held(outside, dtype)
        stack.callback(rest.restore)
        rest.round()
        stack.enter_context(Rounding(dtype))
        yield


class _Held:
    """Parameters and buffers of some modules, rounded for a while."""

    def __init__(self, modules: list[nn.Module], dtype: torch.dtype) -> None:
        self.modules, self.dtype = modules, dtype
        self.originals: list[tuple[Tensor, Tensor]] = []

    def round(self, *_: Any) -> None:
        for module in self.modules:
            for x in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if x.dtype == torch.float32:
                    self.originals.append((x, x.data))
                    x.data = round_to(x.data, self.dtype)

    def restore(self, *_: Any) -> None:
        while self.originals:
            x, data = self.originals.pop()
            x.data = data

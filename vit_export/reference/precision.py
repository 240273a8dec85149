"""Run a model in another precision: float64, or float16 and bfloat16 as torch computes them.

Kernels for the half types are slow or missing on CPUs, so they are emulated: parameters and the
result of every operation are rounded to the half type, and between two roundings the arithmetic is
float32. torch's GPU kernels do the same: products accumulate in float32, and softmax, GELU and
layer norm compute in it.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from vit_export.errors import ExportError
from vit_export.reference.outputs import Outputs


@contextmanager
def converted(model: Outputs, convert: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Convert a block's parameters and buffers while it runs, and all others throughout.

    The blocks are the taps of the model, so that one block at most is held twice. All tensors get
    their own data back, even when the model fails.
    """
    blocks = [model.module.get_submodule(tap) for tap in model.taps]
    in_blocks = {inner for block in blocks for inner in block.modules()}
    originals: list[tuple[Tensor, Tensor]] = []  # each tensor with its own data

    def convert_all(modules: Iterable[nn.Module]) -> None:
        for module in modules:
            for x in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                originals.append((x, x.data))
                x.data = convert(x.data)

    def restore_from(start: int) -> None:
        while len(originals) > start:
            x, data = originals.pop()
            x.data = data

    with ExitStack() as stack:
        stack.callback(restore_from, 0)
        convert_all(inner for inner in model.modules() if inner not in in_blocks)
        outside = len(originals)
        for block in blocks:
            before = block.register_forward_pre_hook(lambda b, _inputs: convert_all(b.modules()))
            after = block.register_forward_hook(lambda *_: restore_from(outside))
            stack.enter_context(before)
            stack.enter_context(after)
        yield


@contextmanager
def in_float64(model: Outputs) -> Iterator[None]:
    """Compute in float64; ExportError where parameters or buffers are not float32."""
    for name, x in (*model.module.named_parameters(), *model.module.named_buffers()):
        if x.is_floating_point() and x.dtype != torch.float32:
            raise ExportError(
                f"only modules in float32 can be exported, and {name!r} is {x.dtype}",
                hint="call .float() on the module",
            )
    with converted(model, to_float64):
        yield


def to_float64(x: Tensor) -> Tensor:
    """Convert floating-point numbers to float64; other tensors are unchanged."""
    return x.double() if x.is_floating_point() else x


class Rounding(TorchDispatchMode):
    """Round every float32 result to a half type."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype = dtype

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Leave the next method as it is: a wrapper would import `torch._dynamo` for a second."""
        return False

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

"""Convert the parameters and buffers of a model for a while, one block at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from vit_export.reference.outputs import Outputs

Convert = Callable[[Tensor], Tensor]


@contextmanager
def converted(model: Outputs, convert: Convert) -> Iterator[None]:
    """Convert a block's parameters and buffers while it runs, and all others throughout.

    So one block at most is held twice. All get their own data back, even when the model fails.

    Args:
        model: Its taps are the blocks.
        convert: Returns the tensor to compute with.
    """
    blocks = [model.module.get_submodule(tap) for tap in model.taps]
    in_blocks = {id(inner) for block in blocks for inner in block.modules()}
    outside = [inner for inner in model.module.modules() if id(inner) not in in_blocks]
    with ExitStack() as stack:
        for block in blocks:
            tensors = _Tensors(list(block.modules()), convert)
            stack.callback(tensors.restore)  # where the block fails
            stack.callback(block.register_forward_pre_hook(tensors.convert).remove)
            stack.callback(block.register_forward_hook(tensors.restore).remove)
        rest = _Tensors(outside, convert)
        stack.callback(rest.restore)
        rest.convert()
        yield


class _Tensors:
    """Parameters and buffers of some modules, with their data while others stand in."""

    def __init__(self, modules: Sequence[nn.Module], function: Convert) -> None:
        self.modules, self.function = modules, function
        self.originals: list[tuple[Tensor, Tensor]] = []

    def convert(self, *_: Any) -> None:
        for module in self.modules:
            for x in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                self.originals.append((x, x.data))
                x.data = self.function(x.data)

    def restore(self, *_: Any) -> None:
        while self.originals:
            x, data = self.originals.pop()
            x.data = data

"""Named outputs of any module, and of its encoder blocks (taps)."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vit_export.artifact.vocabulary import FEATURES, LOGITS, TOKENS
from vit_export.errors import ExportError, check_known, with_article
from vit_export.model.vit import VisionTransformer

OUTPUTS = (LOGITS, FEATURES, TOKENS)


class Outputs(nn.Module):
    """A module whose forward returns a tuple: the outputs, then the results of its taps.

    Args:
        module: Any module that returns tensors.
        names: Outputs to return, in order.
        read: Turns the result of `module` into outputs by name.
        taps: Inner modules whose results are returned as well, e.g. `"blocks.0"`.
        call: Called instead of the module itself.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        names: Sequence[str],
        read: Callable[[Any], Mapping[str, Tensor]],
        taps: Sequence[str] = (),
        call: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        self.names = tuple(names)
        self.taps = tuple(taps)
        self.keep_tap: Callable[[Tensor], Tensor] = whole  # applied to the result of a tap
        self.fixed_batch: int | None = None  # the only batch size that the module takes
        self._read = read
        self._call = call  # a module here would be registered a second time
        self.train(module.training)

    @property
    def all_names(self) -> tuple[str, ...]:
        """Names of what forward returns."""
        return (*self.names, *self.taps)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs and the results of the taps."""
        with _tapped(self.module, self.taps, self.keep_tap) as tapped:
            outputs = self._read((self._call or self.module)(*inputs))
        return (*(outputs[name] for name in self.names), *(tapped[tap] for tap in self.taps))


def whole(x: Tensor) -> Tensor:
    """Keep all of a tap's result."""
    return x


@contextmanager
def _tapped(
    module: nn.Module, taps: Sequence[str], keep_tap: Callable[[Tensor], Tensor]
) -> Iterator[dict[str, Tensor]]:
    results: dict[str, Tensor] = {}

    def keep(tap: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple | list) and output else output
        if isinstance(first, Tensor):
            results[tap] = keep_tap(first)

    with ExitStack() as hooks:
        for tap in taps:
            block = module.get_submodule(tap)
            hooks.enter_context(block.register_forward_hook(partial(keep, tap)))
        yield results


def vit_outputs(model: VisionTransformer, names: Sequence[str] = (LOGITS,)) -> Outputs:
    """Wrap our own model: the outputs named, its features, and every block as a tap.

    Raises:
        UsageError: There is no output of that name.
    """
    for name in names:
        check_known("output", name, OUTPUTS)
    if model.config.num_classes == 0:
        names = [name for name in names if name != LOGITS]
    return Outputs(
        model,
        names=tuple(dict.fromkeys((*names, FEATURES))),
        read=lambda outputs: outputs,
        taps=[f"blocks.{i}" for i in range(len(model.blocks))],
        call=model.forward_all,
    )


def module_outputs(module: nn.Module, inputs: Sequence[Tensor]) -> Outputs:
    """Wrap any module, after calling it once to find its outputs and blocks.

    A tensor is named `logits`, a sequence `logits`, `output_1`, ...; a mapping keeps its names.
    The taps are those members of `find_blocks` that are called and return tensors (B, ...).

    Raises:
        ExportError: The call fails, or returns something else than tensors.
    """
    taps, name = find_blocks(module), type(module).__name__
    try:
        with torch.no_grad(), _tapped(module, taps, whole) as tapped:
            result = module(*inputs)
    except Exception as error:  # whatever the user's code raises
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise ExportError(
            f"{name} fails on inputs of shape {shapes}: {describe_error(error)}",
            hint="if it takes images of another size, give it with --img-size PX; another number "
            "of channels with --set in_chans=N",
        ) from error
    try:
        outputs = read_outputs(result)
    except TypeError as error:
        raise ExportError(
            f"{name} cannot be exported: {error}", hint="wrap it in a module that returns tensors"
        ) from error
    # blocks that are never called, or have no batch axis in front, cannot be compared row by row
    rows = len(inputs[0])
    taps = [tap for tap in taps if tap in tapped and tapped[tap].shape[:1] == (rows,)]
    return Outputs(module, names=tuple(outputs), read=read_outputs, taps=taps)


def describe_error(error: Exception) -> str:
    """Return the kind of an error and its message, or where it was raised if it has none."""
    kind, message = type(error).__name__, str(error)
    if message:
        return f"{kind}: {message}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{kind} in {frame.filename}, line {frame.lineno}: {frame.line}"


def read_outputs(result: Any) -> dict[str, Tensor]:
    """Name the tensors that a module returned.

    Raises:
        TypeError: It returned something else.
    """
    if isinstance(result, Tensor):
        return {LOGITS: result}
    if isinstance(result, Mapping):
        items = list(result.items())
    elif isinstance(result, tuple | list):
        items = [(LOGITS if i == 0 else f"output_{i}", value) for i, value in enumerate(result)]
    else:
        raise TypeError(f"it returns {with_article(type(result).__name__)}, expected tensors")
    named = {str(name): value for name, value in items if value is not None}
    for name, value in named.items():
        if not isinstance(value, Tensor):
            found = with_article(type(value).__name__)
            raise TypeError(f"its output {name!r} is {found}, expected a tensor")
    return named


def find_blocks(module: nn.Module) -> list[str]:
    """Names of the encoder blocks: the longest list of two or more modules of one class."""
    best: list[str] = []
    for name, child in module.named_modules():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            members = list(child)
            alike = len(members) > 1 and len({type(member) for member in members}) == 1
            if alike and [*members[0].parameters()] and len(members) > len(best):
                best = [f"{name}.{i}" if name else str(i) for i in range(len(members))]
    return best

"""Named outputs of any module, and of its encoder blocks (taps)."""

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vit_export.artifact.vocabulary import FEATURES, LOGITS, TOKENS
from vit_export.errors import ExportError, check_known, with_article
from vit_export.model.last_block import LastBlock, count_read_tokens
from vit_export.model.vit import VisionTransformer

OUTPUTS = (LOGITS, FEATURES, TOKENS)


class Outputs(nn.Module):
    """A module whose forward returns a tuple: the outputs, then the results of its taps.

    Taps are inner modules, e.g. `"blocks.0"`; `compute` calls the module and names its outputs.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        names: Sequence[str],
        compute: Callable[..., Mapping[str, Tensor]],
        taps: Sequence[str] = (),
        head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        self.zero_shot = head  # a further module that `compute` calls
        self.names = tuple(names)
        self.taps = tuple(taps)
        self.read: int | None = None  # tokens of the last tap that the outputs need; None for all
        self.keep_tap: Callable[[Tensor], Tensor] | None = None  # applied to a tap's result
        self.fixed_batch: int | None = None  # the only batch size that the module takes
        self.compute = compute  # a module here would be registered a second time
        self.train(module.training)

    @property
    def all_names(self) -> tuple[str, ...]:
        """Names of what forward returns."""
        return (*self.names, *self.taps)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        with _tapped(self.module, self.taps, self.keep_tap, self.read) as tapped:
            outputs = self.compute(*inputs)
        return (*(outputs[name] for name in self.names), *(tapped[tap] for tap in self.taps))


@contextmanager
def _tapped(
    module: nn.Module,
    taps: Sequence[str],
    keep_tap: Callable[[Tensor], Tensor] | None = None,
    read: int | None = None,
) -> Iterator[dict[str, Tensor]]:
    results: dict[str, Tensor] = {}

    def keep(tap: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple | list) and output else output
        if isinstance(first, Tensor):
            if read is not None and tap == taps[-1]:
                first = first[:, :read]
            results[tap] = keep_tap(first) if keep_tap is not None else first

    with ExitStack() as hooks:
        for tap in taps:
            block = module.get_submodule(tap)
            hooks.enter_context(block.register_forward_hook(partial(keep, tap)))
        yield results


def vit_outputs(model: VisionTransformer, names: Sequence[str] = (LOGITS,)) -> Outputs:
    """Wrap our own model: the outputs named, its features, and every block as a tap."""
    for name in names:
        check_known("output", name, OUTPUTS)
    if model.config.num_classes == 0:
        names = [name for name in names if name != LOGITS]
    outputs = Outputs(
        model,
        names=tuple(dict.fromkeys((*names, FEATURES))),
        compute=model.forward_all,
        taps=[f"blocks.{i}" for i in range(len(model.blocks))],
    )
    if TOKENS not in names and not isinstance(model.blocks[-1], LastBlock):
        outputs.read = count_read_tokens(model.config)
    return outputs


def module_outputs(
    module: nn.Module,
    inputs: Sequence[Tensor],
    compute: Callable[..., Any] | None = None,
) -> Outputs:
    """Wrap any module, after calling it once to find its outputs and blocks.

    The taps are those members of `find_blocks` that are called and return tensors (B, ...).
    `compute` calls the module where that is more than a plain call.
    """
    taps, name, call = find_blocks(module), type(module).__name__, compute or module
    try:
        with torch.no_grad(), _tapped(module, taps) as tapped:
            result = call(*inputs)
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise call_error(module, inputs, error) from error
    outputs = _read_outputs(result, name)
    # blocks that are never called, or have no batch axis in front, cannot be compared row by row
    rows = len(inputs[0])
    taps = [tap for tap in taps if tap in tapped and tapped[tap].shape[:1] == (rows,)]
    return Outputs(
        module,
        names=tuple(outputs),
        compute=lambda *inputs: _read_outputs(call(*inputs), name),
        taps=taps,
    )


def call_error(module: nn.Module, inputs: Sequence[Tensor], error: BaseException) -> ExportError:
    """Return the error of a module that fails on its inputs."""
    shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
    return ExportError(
        f"{type(module).__name__} fails on inputs of shape {shapes}: {describe_error(error)}",
        hint="if it takes images of another size, give it with --img-size PX; another number "
        "of channels with --set in_chans=N",
    )


def describe_error(error: BaseException) -> str:
    """Return the kind of an error and its message, or where it was raised if it has none."""
    kind, message = type(error).__name__, str(error)
    if message:
        return f"{kind}: {message}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{kind} in {frame.filename}, line {frame.lineno}: {frame.line}"


def _read_outputs(result: Any, module_name: str) -> dict[str, Tensor]:
    """Name the tensors that a module returned.

    A tensor is named `logits`, a sequence `logits`, `output_1`, ...; a mapping keeps its names.
    """
    problem = f"it returns {with_article(type(result).__name__)}, expected tensors"
    if isinstance(result, Tensor):
        return {LOGITS: result}
    if isinstance(result, tuple | list):
        result = {f"output_{i}" if i else LOGITS: value for i, value in enumerate(result)}
    if isinstance(result, Mapping):
        named = {str(name): value for name, value in result.items() if value is not None}
        wrong = [(name, value) for name, value in named.items() if not isinstance(value, Tensor)]
        if not wrong:
            return named
        name, value = wrong[0]
        problem = f"its output {name!r} is {with_article(type(value).__name__)}, expected a tensor"
    raise ExportError(
        f"{module_name} cannot be exported: {problem}",
        hint="wrap it in a module that returns tensors",
    )


def find_blocks(module: nn.Module) -> list[str]:
    """Names of the encoder blocks: the longest list of two or more modules of one class."""
    best: list[str] = []
    for name, child in module.named_modules():
        members = list(child) if isinstance(child, nn.ModuleList | nn.Sequential) else []
        alike = len({type(member) for member in members}) == 1
        if alike and len(members) > max(1, len(best)) and list(members[0].parameters()):
            best = [f"{name}.{i}" if name else str(i) for i in range(len(members))]
    return best

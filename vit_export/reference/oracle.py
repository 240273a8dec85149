"""Float64 reference outputs, and the errors of torch's own float32, float16 and bfloat16.

An encoder block is converted to float64 only while it runs, so that one block at most is held
twice; the conversion from float32 is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vit_export.artifact.golden import MAX_RELATIVE_E32, Blocks, Golden, block_indices
from vit_export.artifact.vocabulary import TOKENS
from vit_export.errors import ExportError, GateError
from vit_export.progress import Progress, silent
from vit_export.reference.blockwise import converted
from vit_export.reference.emulate_half import in_half, round_to
from vit_export.reference.outputs import Outputs, whole

BATCH = 8  # images at a time
HALF_TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
SUBSAMPLED = (TOKENS,)  # too large to keep whole: recorded like a block


def record(
    model: Outputs,
    inputs: Mapping[str, NDArray[Any]],
    *,
    images: NDArray[np.uint8] | None = None,
    progress: Progress = silent,
) -> Golden:
    """Run a module in float64, float32, float16 and bfloat16 on the golden inputs.

    Where float16 or bfloat16 gives infinite values or NaN, their error is infinite.

    Args:
        model: The module, in evaluation mode, with float32 parameters.
        inputs: Arrays (S, ...) by name, in the order of the module's arguments.
        images: uint8 (S, H, W, C) that `inputs` was made from, where the inputs are images.
        progress: Called after each block.

    Raises:
        GateError: The results are not finite, differ from call to call, or are too inexact.
        ExportError: The module is not in float32, or fails in float64.
    """
    tensors = [torch.from_numpy(array) for array in inputs.values()]
    exact = _run(model, [_to_float64(x) for x in tensors], progress, "float64", in_float64)
    single = _run(model, tensors, progress, "float32")
    _check_deterministic(model, tensors)
    recorded = (*model.taps, *SUBSAMPLED)
    reference: dict[str, Tensor] = {}
    for name, y64, y32 in zip(model.all_names, exact, single, strict=True):
        _check_finite(name, y64, y32)
        reference[name] = subsample(y64) if name in SUBSAMPLED else y64
    outputs = {name: y64 for name, y64 in reference.items() if name not in recorded}
    e32 = _errors(model, single, reference)
    for name, y64 in outputs.items():
        _check_exact_enough(name, e32[name], float(y64.abs().max()))
    e16, ebf16 = (
        _errors(model, _run_half(model, tensors, progress, what), reference) for what in HALF_TYPES
    )
    return Golden(
        images=images,
        inputs={} if images is not None else dict(inputs),
        outputs={name: y64.numpy() for name, y64 in outputs.items()},
        e32={name: e32[name] for name in outputs},
        e16={name: e16[name] for name in outputs},
        ebf16={name: ebf16[name] for name in outputs},
        blocks=_blocks(
            {n: reference[n] for n in recorded if n in reference}, e32=e32, e16=e16, ebf16=ebf16
        ),
    )


def _run_half(
    model: Outputs, tensors: Sequence[Tensor], progress: Progress, what: str
) -> tuple[Tensor, ...]:
    dtype = HALF_TYPES[what]
    inputs = [round_to(x, dtype) for x in tensors]
    return _run(model, inputs, progress, what, lambda m: in_half(m, dtype))


def _errors(
    model: Outputs, results: Sequence[Tensor], reference: Mapping[str, Tensor]
) -> dict[str, float]:
    """Largest distance of every result from the reference; infinite where one is not finite."""
    errors = {}
    for name, y in zip(model.all_names, results, strict=True):
        y, y64 = subsample(y) if name in SUBSAMPLED else y, reference[name]
        if name in model.taps or name in SUBSAMPLED:  # the last element is the row's size
            y, y64 = y[:, :-1], y64[:, :-1]
        error = float((y.double() - y64).abs().max())
        errors[name] = error if math.isfinite(error) else math.inf
    return errors


def subsample(x: Tensor) -> Tensor:
    """Keep K elements of each row, followed by the row's size: (B, ...) to (B, K + 1)."""
    rows = x.flatten(1)
    kept = rows[:, torch.from_numpy(block_indices(rows.shape[1]))]
    return torch.cat((kept, kept.new_full((len(kept), 1), rows.shape[1])), dim=1)


def _blocks(subsamples: Mapping[str, Tensor], **errors: Mapping[str, float]) -> Blocks | None:
    if not subsamples:
        return None
    rows = list(subsamples.values())
    return Blocks(
        names=tuple(subsamples),
        indices=np.stack([block_indices(int(tensor[0, -1])) for tensor in rows]),
        values=np.stack([tensor[:, :-1].numpy() for tensor in rows]),
        **{field: np.array([e[name] for name in subsamples]) for field, e in errors.items()},
    )


def _to_float64(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def _check_finite(name: str, *results: Tensor) -> None:
    for result in results:
        if not bool(torch.isfinite(result).all()):
            raise GateError(
                f"the torch model itself gives NaN or infinite values in {name!r} "
                f"({result.dtype}), so there is nothing to compare an export with",
                hint="check the weights",
            )


def _check_deterministic(model: Outputs, inputs: Sequence[Tensor]) -> None:
    """Raise GateError when two calls with the same images give different results."""
    few = [x[:2] for x in inputs]
    first, second = (_run(model, few, silent, "float32") for _ in range(2))
    for name, y1, y2 in zip(model.all_names, first, second, strict=True):
        if not torch.equal(y1, y2) and bool(torch.isfinite(y1).all()):
            raise GateError(
                f"the torch model gives different {name!r} when it is called again with the same "
                "images, so there is nothing to compare an export with",
                hint="call .eval() on it, and remove random numbers and state from its forward",
            )


def _check_exact_enough(name: str, error: float, largest: float) -> None:
    if error > MAX_RELATIVE_E32 * largest:
        raise GateError(
            f"torch float32 and float64 differ by {error:.3g} in {name!r}, whose largest value is "
            f"{largest:.3g}: with such a tolerance, any export would pass"
        )


def _run(
    model: Outputs,
    inputs: Sequence[Tensor],
    progress: Progress,
    what: str,
    mode: Callable[[Outputs], AbstractContextManager[None]] = lambda _: nullcontext(),
) -> tuple[Tensor, ...]:
    """Run the model in batches and return its outputs and subsamples of its taps."""
    model.keep_tap = subsample
    samples, size = len(inputs[0]), model.fixed_batch or min(BATCH, len(inputs[0]))
    starts = range(0, samples, size)
    rows = [torch.arange(start, start + size) % samples for start in starts]
    try:
        with torch.no_grad(), mode(model), _counted(model, progress, what, len(starts)):
            parts = [model(*(x[row] for x in inputs)) for row in rows]
    except RuntimeError as error:
        raise ExportError(
            f"{type(model.module).__name__} fails in {what}, which its export is compared with: "
            f"{error}",
            hint="in its forward, do not cast to a fixed dtype, and compute only with parameters, "
            "buffers and inputs",
        ) from error
    finally:
        model.keep_tap = whole
    return tuple(torch.cat(pieces)[:samples] for pieces in zip(*parts, strict=True))


@contextmanager
def _counted(model: Outputs, progress: Progress, what: str, passes: int) -> Iterator[None]:
    """Report progress after each block."""
    total, done = len(model.taps) * passes, count(1)

    def report(_block: nn.Module, _inputs: Any, _output: Any) -> None:
        progress(f"torch {what}", next(done), total)

    hooks = [model.module.get_submodule(tap).register_forward_hook(report) for tap in model.taps]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def in_float64(model: Outputs) -> Iterator[None]:
    """Compute in float64.

    Raises:
        ExportError: The module's parameters or buffers are not float32.
    """
    for name, x in (*model.module.named_parameters(), *model.module.named_buffers()):
        if x.is_floating_point() and x.dtype != torch.float32:
            raise ExportError(
                f"only modules in float32 can be exported, and {name!r} is {x.dtype}",
                hint="call .float() on the module",
            )
    with converted(model, _to_float64):
        yield

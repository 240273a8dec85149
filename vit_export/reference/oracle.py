"""The torch truth: what a module computes in float64, and how far its own arithmetic is from it.

The float64 pass converts an encoder block when it is entered and back when it is left, so it
never holds more than one block twice: float32 to float64 and back is exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vit_export.artifact.golden import MAX_RELATIVE_E32, Blocks, Golden, block_indices
from vit_export.errors import ExportError, GateError, VitExportError
from vit_export.progress import Progress, silent
from vit_export.reference.emulate_half import in_half, round_to
from vit_export.reference.outputs import Outputs, describe_error, whole
from vit_export.runner import batch_rows

BATCH = 8  # images at a time
HALF_TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
SUBSAMPLED = ("tokens",)  # an output too large to keep whole: treated as a block is


def record(
    model: Outputs,
    inputs: Mapping[str, NDArray[Any]],
    *,
    images: NDArray[np.uint8] | None = None,
    progress: Progress = silent,
) -> Golden:
    """Run a module in float64, float32, float16 and bfloat16 on the golden inputs.

    In float16 and bfloat16 a result may well be infinite or NaN: then its distance is infinite,
    and says that torch itself cannot run the model so.

    Args:
        model: The module, in evaluation mode, with float32 parameters.
        inputs: Arrays (S, ...) by name, in the order of the module's arguments.
        images: uint8 (S, H, W, C) that `inputs` was made from, where it is pictures.
        progress: Told about each block.

    Raises:
        GateError: What torch computes is not finite.
        ExportError: The module is not in float32, or fails in float64.
    """
    tensors = [torch.from_numpy(array) for array in inputs.values()]
    exact = _run(model, [_as(x, torch.float64) for x in tensors], progress, "float64", in_float64)
    rounded = _run(model, tensors, progress, "float32", _as_it_is)
    _check_unsteady(model, tensors)
    truth, kept = {}, {}
    for name, y64, y32 in zip(model.all_names, exact, rounded, strict=True):
        _check_not_finite(name, y64, y32)
        if name in model.taps or name in SUBSAMPLED:
            kept[name] = y64 if name in model.taps else subsample(y64)
        else:
            truth[name] = y64
    known = truth | kept
    e32 = _distances(model, rounded, known)
    for name, y64 in truth.items():
        _check_loose(name, e32[name], float(y64.abs().max()))
    halves = {what: _distances(model, _run_half(model, tensors, progress, what), known)
              for what in HALF_TYPES}  # fmt: skip
    e16, ebf16 = halves["float16"], halves["bfloat16"]
    return Golden(
        images=images,
        inputs={} if images is not None else dict(inputs),
        outputs={name: y64.numpy() for name, y64 in truth.items()},
        e32={name: e32[name] for name in truth},
        e16={name: e16[name] for name in truth},
        ebf16={name: ebf16[name] for name in truth},
        blocks=_gather(
            {name: kept[name] for name in (*model.taps, *SUBSAMPLED) if name in kept},
            e32=e32,
            e16=e16,
            ebf16=ebf16,
        ),
    )


def _run_half(
    model: Outputs, tensors: Sequence[Tensor], progress: Progress, what: str
) -> tuple[Tensor, ...]:
    dtype = HALF_TYPES[what]
    inputs = [round_to(x, dtype) for x in tensors]
    return _run(model, inputs, progress, what, lambda m: in_half(m, dtype))


def _distances(
    model: Outputs, results: Sequence[Tensor], known: Mapping[str, Tensor]
) -> dict[str, float]:
    """Largest distance of every result from the oracle; infinite where one is not finite."""
    found = {}
    for name, y in zip(model.all_names, results, strict=True):
        if name in SUBSAMPLED:
            y = subsample(y)
        y64 = known[name]
        if name in model.taps or name in SUBSAMPLED:  # the last element is the row's size
            y, y64 = y[:, :-1], y64[:, :-1]
        distance = float((y.double() - y64).abs().max())
        found[name] = distance if math.isfinite(distance) else math.inf
    return found


def subsample(x: Tensor) -> Tensor:
    """Keep a few elements of each row, and the row's size last: (B, ...) to (B, K + 1)."""
    rows = x.flatten(1)
    kept = rows[:, torch.from_numpy(block_indices(rows.shape[1]))]
    return torch.cat((kept, kept.new_full((len(kept), 1), rows.shape[1])), dim=1)


def _gather(kept: Mapping[str, Tensor], **distances: Mapping[str, float]) -> Blocks | None:
    if not kept:
        return None
    rows = list(kept.values())
    return Blocks(
        names=tuple(kept),
        indices=np.stack([block_indices(int(tensor[0, -1])) for tensor in rows]),
        values=np.stack([tensor[:, :-1].numpy() for tensor in rows]),
        **{what: np.array([e[name] for name in kept]) for what, e in distances.items()},
    )


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if x.is_floating_point() else x


def _check_not_finite(name: str, *results: Tensor) -> None:
    for result in results:
        if not bool(torch.isfinite(result).all()):
            raise GateError(
                f"the torch model itself gives NaN or infinite values in {name!r} "
                f"({result.dtype}); there is nothing to compare an export with: check the weights"
            )


def _check_unsteady(model: Outputs, inputs: Sequence[Tensor]) -> None:
    """Raise GateError when two calls with the same images give different results."""
    few = [x[:2] for x in inputs]
    first, second = (_run(model, few, silent, "float32", _as_it_is) for _ in range(2))
    for name, y1, y2 in zip(model.all_names, first, second, strict=True):
        if not torch.equal(y1, y2) and bool(torch.isfinite(y1).all()):
            raise GateError(
                f"the torch model gives {name!r} differently when it is called again with the "
                "same images, so there is no truth to compare an export with. Does it draw "
                "random numbers, or keep state? Call .eval() on it and make it deterministic"
            )


def _check_loose(name: str, distance: float, largest: float) -> None:
    if distance > MAX_RELATIVE_E32 * largest:
        raise GateError(
            f"torch float32 and float64 differ by {distance:.3g} in {name!r}, whose largest value "
            f"is {largest:.3g}: a gate that loose would let anything pass"
        )


def _run(
    model: Outputs,
    inputs: Sequence[Tensor],
    progress: Progress,
    what: str,
    mode: Any,
) -> tuple[Tensor, ...]:
    model.keep_tap = subsample
    samples = len(inputs[0])
    rows = batch_rows(samples, model.fixed_batch or min(BATCH, samples))
    try:
        with torch.no_grad(), mode(model), _counted(model, progress, what, len(rows)):
            parts = [model(*(x[row] for x in inputs)) for row in rows]
    except VitExportError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise ExportError(
            f"{type(model.module).__name__} fails in {what}, which the gate measures by: "
            f"{describe_error(error)}",
            hint="its forward must work for any batch size, must not cast to a fixed dtype, and "
            "must not compute with tensors that are neither parameters nor buffers",
        ) from error
    finally:
        model.keep_tap = whole
    return tuple(torch.cat(pieces)[:samples] for pieces in zip(*parts, strict=True))


@contextmanager
def _counted(model: Outputs, progress: Progress, what: str, passes: int) -> Iterator[None]:
    """Tell the progress after each block."""
    total, done = len(model.taps) * passes, count(1)

    def tell(_block: nn.Module, _inputs: Any, _output: Any) -> None:
        progress(f"torch {what}", next(done), total)

    hooks = [model.module.get_submodule(tap).register_forward_hook(tell) for tap in model.taps]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


@contextmanager
def _as_it_is(_model: nn.Module) -> Iterator[None]:
    yield


@contextmanager
def in_float64(model: Outputs) -> Iterator[None]:
    """Compute in float64 while the context lasts; a block only while it runs.

    Raises:
        ExportError: The module's parameters or buffers are not float32.
    """
    for name, x in (*model.module.named_parameters(), *model.module.named_buffers()):
        if x.is_floating_point() and x.dtype != torch.float32:
            raise ExportError(
                f"the gate needs a module in float32, but {name!r} is {x.dtype}: call .float() "
                "on the module before the export"
            )
    blocks = [model.module.get_submodule(tap) for tap in model.taps]
    in_blocks = {id(inner) for block in blocks for inner in block.modules()}
    outside = [inner for inner in model.module.modules() if id(inner) not in in_blocks]
    hooks = []
    for block in blocks:
        hooks.append(block.register_forward_pre_hook(_widen))
        hooks.append(block.register_forward_hook(_narrow))
    for inner in outside:
        inner._apply(lambda x: _as(x, torch.float64), recurse=False)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        model.module.float()


def _widen(block: nn.Module, _inputs: Any) -> None:
    block.double()


def _narrow(block: nn.Module, _inputs: Any, _output: Any) -> None:
    block.float()

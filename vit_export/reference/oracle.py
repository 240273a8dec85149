"""Float64 reference outputs, and the errors of torch's own float32, float16 and bfloat16."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vit_export.artifact.golden import MAX_RELATIVE_E32, Blocks, Golden, block_indices
from vit_export.artifact.vocabulary import TOKENS
from vit_export.errors import ExportError, GateError
from vit_export.progress import Progress, silent
from vit_export.reference.outputs import Outputs
from vit_export.reference.precision import in_float64, in_half, round_to, to_float64

BATCH = 8  # images at a time
REPEATED = 1  # images at a time in float32, whose first batch is run twice
HALF_TYPES = {"e16": torch.float16, "ebf16": torch.bfloat16}  # by baseline
Results = dict[str, Tensor]  # of a module, by name; a tap's are a subsample


def record(
    model: Outputs,
    inputs: Mapping[str, NDArray[Any]],
    *,
    images: NDArray[np.uint8] | None = None,
    progress: Progress = silent,
) -> Golden:
    """Run a module in float64, float32, float16 and bfloat16 on the golden inputs.

    `inputs` (S, ...) stand in the order of the module's arguments; `images`, uint8 (S, H, W, C),
    are those that they were made from. Where float16 or bfloat16 gives infinite values or NaN,
    their error is infinite; both run on every second sample.

    Raises:
        GateError: float64 or float32 gives them, results change from call to call, or float32 is
            too inexact.
        ExportError: The module is not in float32, or fails in float64.
    """
    tensors = [torch.from_numpy(array) for array in inputs.values()]
    exact = _run(model, [to_float64(x) for x in tensors], progress, "float64", in_float64)
    single = _run(model, tensors, progress, "float32", size=REPEATED)
    _check_deterministic(model, tensors, single)
    for name, y in (*exact.items(), *single.items()):
        if not bool(torch.isfinite(y).all()):
            raise GateError(
                f"the torch model itself gives NaN or infinite values in {name!r} ({y.dtype}), so "
                "there is nothing to compare an export with",
                hint="check the weights",
            )
    if TOKENS in exact:  # too large to keep whole: recorded like a block
        exact[TOKENS] = subsample(exact[TOKENS])
    blocks = {name: exact[name] for name in (*model.taps, TOKENS) if name in exact}
    outputs = {name: y64 for name, y64 in exact.items() if name not in blocks}
    errors = {"e32": _errors(single, outputs, blocks)}
    for name, y64 in outputs.items():
        e32, largest = errors["e32"][name], float(y64.abs().max())
        if e32 > MAX_RELATIVE_E32 * largest:
            raise GateError(
                f"torch float32 and float64 differ by {e32:.3g} in {name!r}, whose largest value "
                f"is {largest:.3g}: with such a tolerance, any export would pass"
            )
    for baseline, dtype in HALF_TYPES.items():
        rounded = [round_to(x[::2], dtype) for x in tensors]
        name = str(dtype).removeprefix("torch.")
        results = _run(model, rounded, progress, name, partial(in_half, dtype=dtype))
        errors[baseline] = _errors(results, outputs, blocks, step=2)
    of_outputs = {b: {name: e[name] for name in outputs} for b, e in errors.items()}
    return Golden(
        images=images,
        inputs={} if images is not None else dict(inputs),
        outputs={name: y64.numpy() for name, y64 in outputs.items()},
        e32=of_outputs["e32"],
        e16=of_outputs["e16"],
        ebf16=of_outputs["ebf16"],
        blocks=_blocks(blocks, errors),
    )


def _errors(results: Results, outputs: Results, blocks: Results, step: int = 1) -> dict[str, float]:
    """Largest distance of every result from the reference; infinite where one is not finite.

    The results are those of every `step`-th sample.
    """
    errors = {}
    for name, y in results.items():
        y64 = (outputs[name] if name in outputs else blocks[name])[::step]
        if name in blocks:  # the last element is the row's size
            y, y64 = (subsample(y) if name == TOKENS else y)[:, :-1], y64[:, :-1]
        error = float((y.double() - y64).abs().max())
        errors[name] = error if math.isfinite(error) else math.inf
    return errors


def subsample(x: Tensor) -> Tensor:
    """Keep K elements of each row, followed by the row's size: (B, ...) to (B, K + 1)."""
    rows = x.flatten(1)
    kept = rows[:, torch.from_numpy(block_indices(rows.shape[1]))]
    return torch.cat((kept, kept.new_full((len(kept), 1), rows.shape[1])), dim=1)


def _blocks(subsamples: Results, errors: Mapping[str, Mapping[str, float]]) -> Blocks | None:
    if not subsamples:
        return None
    return Blocks(
        names=tuple(subsamples),
        indices=np.stack([block_indices(int(tensor[0, -1])) for tensor in subsamples.values()]),
        values=np.stack([tensor[:, :-1].numpy() for tensor in subsamples.values()]),
        **{field: np.array([e[name] for name in subsamples]) for field, e in errors.items()},
    )


def _check_deterministic(model: Outputs, inputs: Sequence[Tensor], first: Results) -> None:
    """Raise GateError when a second call with the first images gives different results."""
    few = [x[: model.fixed_batch or REPEATED] for x in inputs]
    for name, y in _run(model, few, silent, "float32", size=REPEATED).items():
        if not torch.equal(y, first[name][: len(y)]) and bool(torch.isfinite(y).all()):
            raise GateError(
                f"the torch model gives different {name!r} when it is called again with the same "
                "images, so there is nothing to compare an export with",
                hint="call .eval() on it, and remove random numbers and state from its forward",
            )


def _run(
    model: Outputs,
    inputs: Sequence[Tensor],
    progress: Progress,
    what: str,
    mode: Callable[[Outputs], AbstractContextManager[None]] = lambda _: nullcontext(),
    *,
    size: int = BATCH,
) -> Results:
    samples = len(inputs[0])
    size = model.fixed_batch or min(size, samples)
    rows = [torch.arange(start, start + size) % samples for start in range(0, samples, size)]
    total, done = len(model.taps) * len(rows), count(1)

    def keep(x: Tensor) -> Tensor:
        progress(f"torch {what}", next(done), total)
        return subsample(x)

    model.keep_tap = keep
    try:
        with torch.no_grad(), mode(model):
            parts = [model(*(x[row] for x in inputs)) for row in rows]
    except RuntimeError as error:
        raise ExportError(
            f"{type(model.module).__name__} fails in {what}, which its export is compared with: "
            f"{error}",
            hint="in its forward, do not cast to a fixed dtype, and compute only with parameters, "
            "buffers and inputs",
        ) from error
    finally:
        model.keep_tap = None
    for name, y in zip(model.all_names, parts[0], strict=True):
        if not y.ndim:
            raise GateError(
                f"the torch model gives {name!r} as one number for {size} images",
                hint="an output has a row for each image: leave this one out",
            )
        if y.shape[:1] != (size,):
            raise GateError(
                f"the torch model gives {name!r} of shape {tuple(y.shape)} for {size} images: it "
                "fixes its batch size",
                hint="export it at that size with --batch N",
            )
    results = (torch.cat(pieces)[:samples] for pieces in zip(*parts, strict=True))
    return dict(zip(model.all_names, results, strict=True))

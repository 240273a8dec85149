"""Optimization profiles: the shapes that an engine accepts, and the one it is fastest at."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vit_export.artifact.engine_sidecar import BatchRange, Profile, Range
from vit_export.artifact.manifest import TensorSpec
from vit_export.errors import UsageError
from vit_export.runtime.checks import with_batch

DEFAULT_BATCH = BatchRange(1, 8, 32)
MAX_DIMENSION = 2**31 - 1  # what TensorRT's kernels can count


def range_text(batch_range: BatchRange) -> str:
    """Return a range as `parse_range` reads it, e.g. `"1:8:32"`."""
    return ":".join(map(str, batch_range))


def parse_range(text: str) -> BatchRange:
    """Read `MIN:OPT:MAX`, or one batch size for all three; UsageError for anything else."""
    match = re.fullmatch(r"\s*(\d{1,10})\s*(?::\s*(\d{1,10})\s*:\s*(\d{1,10})\s*)?", text)
    if match is None:
        raise UsageError(f"--batch {text}: expected MIN:OPT:MAX, e.g. 1:8:32, or one batch size")
    return BatchRange(*(int(size or match[1]) for size in match.groups()))


def check_batch_range(batch_range: BatchRange) -> None:
    """Raise UsageError unless 1 <= min <= opt <= max <= `MAX_DIMENSION`."""
    if not 1 <= batch_range.min <= batch_range.opt <= batch_range.max <= MAX_DIMENSION:
        limit = f" <= {MAX_DIMENSION}" if batch_range.max > MAX_DIMENSION else ""
        raise UsageError(
            f"--batch {range_text(batch_range)}: expected 1 <= MIN <= OPT <= MAX{limit}, "
            "e.g. 1:8:32"
        )


def profiles_of(inputs: Sequence[TensorSpec], batches: Sequence[BatchRange]) -> tuple[Profile, ...]:
    """Return one profile per range of batch sizes, none where all shapes of the inputs are fixed.

    Raises:
        UsageError: The graph has a fixed batch size other than `batches`, or another dynamic
            dimension.
    """
    dynamic = [spec for spec in inputs if spec.dynamic]
    if not dynamic:
        fixed = inputs[0].shape[0]
        if any(batch_range != (fixed, fixed, fixed) for batch_range in batches):
            raise UsageError(
                f"--batch {range_text(batches[0])}: the graph has a fixed batch size ({inputs[0]})",
                hint="export it with --batch dynamic",
            )
        return ()
    for spec in dynamic:
        if names := [name for name in spec.shape[1:] if isinstance(name, str)]:
            raise UsageError(
                f"the graph has a dynamic {' and '.join(names)} ({spec}), which TensorRT cannot "
                "build (it has no antialiased Resize)",
                hint="export one file per size: vit-export onnx --img-size",
            )
    return tuple(
        {spec.name: Range(*(with_batch(spec.shape, size) for size in sizes)) for spec in dynamic}
        for sizes in (tuple(batches) or (DEFAULT_BATCH,))
    )

"""Optimization profiles: which shapes an engine serves, and which it is fastest at."""

from __future__ import annotations

from collections.abc import Sequence

from vit_export.artifact.engine_sidecar import BatchRange, Profile, Range
from vit_export.artifact.manifest import TensorSpec
from vit_export.errors import UsageError

DEFAULT_BATCH = BatchRange(1, 8, 32)
LARGEST = 2**31 - 1  # dimension that TensorRT's kernels can count


def show(ends: BatchRange) -> str:
    """As it is typed, e.g. `"1:8:32"`."""
    return ":".join(map(str, ends))


def parse(text: str) -> BatchRange:
    """Read `MIN:OPT:MAX`, or one size for all three.

    Raises:
        UsageError: Not one or three sizes.
    """
    words = [word.strip() for word in text.split(":")]
    if len(words) not in (1, 3) or not all(word.isdecimal() for word in words):
        raise UsageError(f"--batch {text}: expected MIN:OPT:MAX, e.g. 1:8:32, or one batch size")
    if any(len(word) > len(str(LARGEST)) for word in words):
        raise UsageError(f"--batch {text}: must be at most {LARGEST}, e.g. 1:8:32")
    sizes = [int(word) for word in words]
    return BatchRange(*(sizes if len(sizes) == 3 else 3 * sizes))


def check_batch_range(ends: BatchRange) -> None:
    """Raise UsageError unless sizes rise from at least 1 to what TensorRT can count."""
    if not 1 <= ends.min <= ends.opt <= ends.max <= LARGEST:
        raise UsageError(
            f"--batch {show(ends)}: must rise from at least 1 to at most {LARGEST}, e.g. 1:8:32"
        )


def profiles_of(inputs: Sequence[TensorSpec], batches: Sequence[BatchRange]) -> tuple[Profile, ...]:
    """Make one profile per range of batch sizes.

    Args:
        inputs: What the graph takes.
        batches: What was asked for; `DEFAULT_BATCH` where nothing was.

    Returns:
        The profiles; none where every shape is fixed.

    Raises:
        UsageError: Batch sizes were given for a graph that fixes its own, or the graph has
            another dynamic dimension.
    """
    dynamic = [spec for spec in inputs if spec.dynamic]
    if not dynamic:
        fixed = inputs[0].shape[0]
        if any(ends != (fixed, fixed, fixed) for ends in batches):
            raise UsageError(
                f"--batch {show(batches[0])}: the graph fixes its batch size ({inputs[0]}); "
                "export it with --batch dynamic"
            )
        return ()
    for spec in dynamic:
        if strays := [name for name in spec.shape[1:] if isinstance(name, str)]:
            raise UsageError(
                f"the graph has a dynamic {' and '.join(strays)} ({spec}), which TensorRT cannot "
                "build (it has no antialiased Resize); export one file per size: "
                "vit-export onnx --img-size"
            )
    return tuple(
        {spec.name: Range(*(_shape(spec, size) for size in ends)) for spec in dynamic}
        for ends in (tuple(batches) or (DEFAULT_BATCH,))
    )


def _shape(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    return tuple(batch if isinstance(size, str) else size for size in spec.shape)

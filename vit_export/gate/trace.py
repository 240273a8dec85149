"""Where an artifact leaves its torch model: the error of every encoder block.

numpy only; inner tensors are exposed by appending graph outputs to the file's bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vit_export.artifact.golden import BATCHES, Golden
from vit_export.artifact.manifest import Preprocess, fits
from vit_export.errors import ArtifactError, InputError
from vit_export.gate.distance import Array, Reference, cosine, references
from vit_export.gate.tolerances import Criterion
from vit_export.images.prepare import normalize
from vit_export.runner import Runnable, Runner


@dataclass(frozen=True, kw_only=True)
class BlockError:
    """Distance of one inner tensor from the oracle, over the elements that the golden file keeps.

    Attributes:
        max_abs: `None` where the graph has no tensor of that name.
        tolerance: Largest distance allowed; `None` where cosine decides.
        cosine: Smallest cosine similarity over images; `None` where there is no such tensor.
        relative: `max_abs` as a share of the largest value of the tensor.
        accepted: Whether it is within its limits.
    """

    name: str
    max_abs: float | None
    tolerance: float | None
    cosine: float | None = None
    relative: float | None = None
    accepted: bool = True

    @property
    def diverges(self) -> bool:
        """Whether it is known to lie outside its limits."""
        return not self.accepted


def golden_feeds(
    runner: Runnable, golden: Golden, preprocess: Preprocess | None
) -> dict[str, Array]:
    """The golden inputs as the graph takes them.

    Raises:
        ArtifactError: Golden file and artifact do not belong together.
    """
    if golden.images is None:
        feeds = dict(golden.inputs)
    elif preprocess is None:
        raise ArtifactError(
            f"{runner.path.name}: has no vit-export manifest, so it does not say how golden "
            "images are normalised; give it with --mean and --std"
        )
    elif golden.images.shape[-1] != len(preprocess.mean):
        raise ArtifactError(
            f"{runner.path.name}: takes {len(preprocess.mean)} channels, the golden images have "
            f"{golden.images.shape[-1]}; the golden file belongs to another model"
        )
    else:
        feeds = {runner.inputs[0].name: normalize(golden.images, preprocess)}
    for spec in runner.inputs:
        if spec.name not in feeds:
            raise ArtifactError(f"{runner.path.name}: the golden file has no input {spec.name!r}")
        if not fits(spec.shape[1:], feeds[spec.name].shape[1:]):
            raise ArtifactError(
                f"{runner.path.name}: takes {spec}, the golden file has "
                f"{feeds[spec.name].shape}; it belongs to another model"
            )
    return {
        spec.name: feeds[spec.name].astype(np.float16, copy=False)
        if spec.dtype == "float16"
        else feeds[spec.name]
        for spec in runner.inputs
    }


def trace(
    runner: Runner, golden: Golden, feeds: Mapping[str, Array], criterion: Criterion
) -> tuple[BlockError, ...]:
    """Measure what leaves each encoder block on one batch of golden inputs."""
    if golden.blocks is None:
        return ()
    known = references(golden, criterion)
    present = [name for name in golden.blocks.names if runner.has_tensor(name)]
    first = runner.inputs[0].shape[0]
    size = first if isinstance(first, int) else min(BATCHES[-1], golden.samples)
    rows = [i % golden.samples for i in range(size)]
    outputs: Mapping[str, Array] = {}
    if present:
        runner.release()
        try:
            exposed = runner.expose(present)
            outputs = exposed.run({name: values[rows] for name, values in feeds.items()})
        except (ArtifactError, InputError):
            present = []
    return tuple(
        _block_error(name, known[name], rows, outputs[name] if name in present else None)
        for name in golden.blocks.names
    )


def _block_error(
    name: str, reference: Reference, rows: Sequence[int], output: Array | None
) -> BlockError:
    if output is None:
        return BlockError(name=name, max_abs=None, tolerance=reference.tolerance)
    found, expected = reference.pick(output), reference.values[list(rows)]
    if found.shape != expected.shape or not np.isfinite(found).all():
        max_abs, angle = float("inf"), 0.0
    else:
        max_abs, angle = float(np.abs(found - expected).max()), cosine(found, expected)
    return BlockError(
        name=name,
        max_abs=max_abs,
        tolerance=reference.tolerance,
        cosine=angle,
        relative=max_abs / reference.largest if reference.largest else None,
        accepted=reference.accepts(max_abs, angle),
    )


def locate(blocks: Sequence[BlockError]) -> list[str]:
    """Say where the artifact first leaves its torch model, as far as that is known."""
    for block in blocks:
        if block.diverges:
            return [f"first tensor outside its tolerance: {block.name} ({_beyond(block)})"]
    if any(block.max_abs is not None for block in blocks):
        return ["every block is within its tolerance: what differs lies behind the last one"]
    return ["the graph has none of the block tensors that the golden file knows"] if blocks else []


def _beyond(block: BlockError) -> str:
    if block.tolerance is None:
        return f"cosine {block.cosine:.4f}"
    return f"{block.max_abs:.3g}, allowed {block.tolerance:.3g}"

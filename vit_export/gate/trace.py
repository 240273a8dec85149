"""Error of every encoder block: where an artifact first differs from its torch model.

Inner tensors are exposed by appending graph outputs to the file's bytes, with numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vit_export.artifact.golden import BATCHES, Golden
from vit_export.artifact.preprocess import Preprocess
from vit_export.errors import ArtifactError
from vit_export.gate.distance import Array, Measured, Reference, references
from vit_export.gate.tolerances import Tolerances
from vit_export.images.prepare import normalize
from vit_export.runner import Runnable, Runner, batch_rows, batch_size


@dataclass(frozen=True, kw_only=True)
class BlockError:
    """Distance of one inner tensor from its reference, over the elements in the golden file.

    Attributes:
        name: Name of the tensor.
        max_abs: `None` where the graph has no tensor of that name.
        tolerance: Largest distance allowed; `None` where the cosine decides.
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
        """Whether the tensor is outside its limits."""
        return not self.accepted


def golden_feeds(
    runner: Runnable, golden: Golden, preprocess: Preprocess | None
) -> dict[str, Array]:
    """Return the golden inputs as the graph takes them.

    Raises:
        ArtifactError: Golden file and artifact do not belong together.
    """
    name = runner.path.name
    if golden.images is None:
        feeds = dict(golden.inputs)
    elif preprocess is None:
        raise ArtifactError(
            f"{name}: has no vit-export manifest, so how to normalise golden images is unknown",
            hint="give --mean and --std as the model was trained with",
        )
    elif golden.images.shape[-1] != len(preprocess.mean):
        raise ArtifactError(
            f"{name}: takes {len(preprocess.mean)} channels, and the golden images have "
            f"{golden.images.shape[-1]}: the golden file belongs to another model"
        )
    else:
        feeds = {runner.inputs[0].name: normalize(golden.images, preprocess)}
    for spec in runner.inputs:
        if spec.name not in feeds:
            raise ArtifactError(f"{name}: the golden file has no input {spec.name!r}")
        if not spec.fits(feeds[spec.name].shape, start=1):
            raise ArtifactError(
                f"{name}: takes {spec}, and the golden file has {feeds[spec.name].shape}: it "
                "belongs to another model"
            )
    return {
        spec.name: feeds[spec.name].astype(np.float16, copy=False)
        if spec.dtype == "float16"
        else feeds[spec.name]
        for spec in runner.inputs
    }


def trace(
    runner: Runner, golden: Golden, feeds: Mapping[str, Array], tolerances: Tolerances
) -> tuple[BlockError, ...]:
    """Measure the output of each encoder block on one batch of golden inputs.

    Raises:
        ArtifactError: The artifact cannot be run with its blocks exposed.
        InputError: It does not take a batch of golden inputs.
    """
    if golden.blocks is None:
        return ()
    known = references(golden, tolerances)
    present = [name for name in golden.blocks.names if runner.has_tensor(name)]
    size = batch_size(runner, min(BATCHES[-1], golden.samples))
    rows = batch_rows(golden.samples, size)[0]
    outputs: Mapping[str, Array] = {}
    if present:
        runner.release()
        exposed = runner.expose(present)
        outputs = exposed.run({name: values[rows] for name, values in feeds.items()})
        exposed.release()
    return tuple(
        _block_error(name, known[name], rows, outputs.get(name)) for name in golden.blocks.names
    )


def _block_error(
    name: str, reference: Reference, rows: Sequence[int], output: Array | None
) -> BlockError:
    if output is None:
        return BlockError(name=name, max_abs=None, tolerance=reference.tolerance)
    result = Measured(reference)
    result.add(len(rows), rows, output)
    return BlockError(
        name=name,
        max_abs=result.max_abs,
        tolerance=reference.tolerance,
        cosine=result.min_cosine,
        relative=result.max_abs / reference.largest if reference.largest else None,
        accepted=result.accepted,
    )


def locate(blocks: Sequence[BlockError]) -> list[str]:
    """Return the sentence that names the first block outside its limits, where that is known."""
    for block in blocks:
        if block.diverges:
            return [f"first tensor outside its tolerance: {block.name} ({_error_of(block)})"]
    if any(block.max_abs is not None for block in blocks):
        return ["every block is within its tolerance: the error is behind the last block"]
    return ["the graph has no tensor with the name of a block in the golden file"] if blocks else []


def _error_of(block: BlockError) -> str:
    if block.tolerance is None:
        return f"cosine {block.cosine:.4f}"
    return f"{block.max_abs:.3g}, allowed {block.tolerance:.3g}"

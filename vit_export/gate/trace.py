"""Error of every encoder block: where an artifact first differs from its torch model.

Inner tensors are exposed by appending graph outputs to the file's bytes, with numpy only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vit_export.artifact.golden import BATCHES, Golden
from vit_export.artifact.preprocess import Preprocess
from vit_export.artifact.vocabulary import IMAGE
from vit_export.errors import ArtifactError
from vit_export.gate.distance import Array, Measured, references
from vit_export.gate.tolerances import Tolerances
from vit_export.images.prepare import before_preparation, normalize
from vit_export.runner import Runnable, Runner, batch_rows, batch_size


@dataclass(frozen=True, kw_only=True)
class BlockError:
    """Distance of one inner tensor from its reference, over the elements in the golden file."""

    name: str
    max_abs: float | None = None  # None where the graph has no tensor of that name
    tolerance: float | None  # largest distance allowed; None where the cosine decides
    cosine: float | None = None  # smallest one over images
    relative: float | None = None  # `max_abs` as a share of the largest value of the tensor
    accepted: bool = True  # whether it is within its limits


def golden_feeds(
    runner: Runnable, golden: Golden, preprocess: Preprocess | None
) -> dict[str, Array]:
    """Return the golden inputs as the graph takes them; ArtifactError where they do not fit it."""
    name, given = runner.path.name, golden.inputs
    if golden.images is not None:
        if preprocess is None:
            raise ArtifactError(
                f"{name}: has no vit-export manifest, so how to normalise golden images is unknown",
                hint="give --mean and --std as the model was trained with",
            )
        if golden.images.shape[-1] != len(preprocess.mean):
            raise ArtifactError(
                f"{name}: takes {len(preprocess.mean)} channels, and the golden images have "
                f"{golden.images.shape[-1]}: the golden file belongs to another model"
            )
        is_prepared = runner.inputs[0].name != IMAGE
        prepare = normalize if is_prepared else before_preparation
        given = {runner.inputs[0].name: prepare(golden.images, preprocess)}
    feeds = {}
    for spec in runner.inputs:
        if spec.name not in given:
            raise ArtifactError(f"{name}: the golden file has no input {spec.name!r}")
        values = given[spec.name]
        if not spec.fits(values.shape, start=1):
            raise ArtifactError(
                f"{name}: takes {spec}, and the golden file has {values.shape}: it belongs to "
                "another model"
            )
        is_half = spec.dtype == "float16"
        feeds[spec.name] = values.astype(np.float16, copy=False) if is_half else values
    return feeds


def measure_blocks(
    runner: Runner, golden: Golden, feeds: Mapping[str, Array], tolerances: Tolerances
) -> tuple[BlockError, ...]:
    """Measure the output of each encoder block on one batch of golden inputs."""
    if golden.blocks is None:
        return ()
    present = [name for name in golden.blocks.names if runner.has_tensor(name)]
    rows = batch_rows(golden.samples, batch_size(runner, min(BATCHES[-1], golden.samples)))[0]
    outputs: Mapping[str, Array] = {}
    if present:
        runner.release()
        exposed = runner.expose(present)
        outputs = exposed.run({name: values[rows] for name, values in feeds.items()})
        exposed.release()
    known, blocks = references(golden, tolerances), []
    for name in golden.blocks.names:
        reference = known[name]
        block = BlockError(name=name, tolerance=reference.tolerance)
        if name in outputs:
            result, largest = Measured(reference), reference.largest
            result.add(rows, outputs[name])
            block = replace(
                block,
                max_abs=result.max_abs,
                cosine=result.min_cosine,
                relative=result.max_abs / largest if largest else None,
                accepted=result.accepted,
            )
        blocks.append(block)
    return tuple(blocks)


def locate(blocks: Sequence[BlockError]) -> list[str]:
    """Return the sentence that names the first block outside its limits, where that is known."""
    for block in blocks:
        if not block.accepted:
            error = f"cosine {block.cosine:.4f}"
            if block.tolerance is not None:
                error = f"{block.max_abs:.3g}, allowed {block.tolerance:.3g}"
            return [f"first tensor outside its tolerance: {block.name} ({error})"]
    if any(block.max_abs is not None for block in blocks):
        return ["every block is within its tolerance: the error is behind the last block"]
    return ["the graph has no tensor with the name of a block in the golden file"] if blocks else []

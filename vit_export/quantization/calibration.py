"""Running images through an artifact to see how large its inner tensors get.

One pass, batch by batch: nothing is kept but the statistics of `ranges`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_export.artifact.manifest import PIXEL_VALUES, Preprocess
from vit_export.errors import DataError, GateError
from vit_export.images.prepare import prepare_batch
from vit_export.progress import Progress, silent
from vit_export.quantization.activation_ranges import Ranges, TensorRange
from vit_export.runner import Runner, batch_rows

MOST = 128  # images; TensorRT's guide asks for about 500 of ImageNet, ranges of a ViT need fewer
BATCH = 8

Feeds = Mapping[str, Any]


def calibrate(
    runner: Runner,
    batches: Iterable[Feeds],
    tensors: Sequence[str],
    *,
    total: int = 0,
    progress: Progress = silent,
) -> Ranges:
    """Watch tensors of an artifact while batches run through it.

    Args:
        runner: The fp32 artifact.
        batches: Inputs by name, as `calibration_batches` gives them.
        tensors: Names of the tensors, as `graph.int8_plan.planned_tensors` gives them.
        total: How many images there are, for the progress bar; 0 where nobody knows.
        progress: Told how many images are done.

    Raises:
        DataError: There is no batch.
        GateError: A tensor is not finite.
    """
    names = list(dict.fromkeys(tensors))
    found: dict[str, TensorRange] = {}
    images = 0
    watching = runner.expose(names)
    try:
        progress("calibrating", 0, total)
        for feeds in batches:
            outputs = watching.run(feeds)
            for name in names:
                _add(found, name, np.asarray(outputs[name], np.float32))
            images += len(next(iter(feeds.values())))
            progress("calibrating", images, total)
    finally:
        watching.release()
    if not images:
        raise DataError(f"calibrating {runner.path.name}: no image was given, expected some")
    return Ranges(tensors=found, images=images)


def _add(found: dict[str, TensorRange], name: str, values: NDArray[np.float32]) -> None:
    if not np.isfinite(values).all():
        raise GateError(
            f"calibration: tensor {name!r} is not finite on these images, so it has no range; "
            "validate the fp32 artifact"
        )
    if name not in found:
        found[name] = TensorRange(np.zeros(values.shape[-1], np.float32))
    found[name].add(values)


def calibration_batches(
    images: Sequence[Path] | NDArray[np.uint8],
    preprocess: Preprocess,
    *,
    most: int = MOST,
    batch: int = BATCH,
    fixed: bool = False,
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Prepare images as the artifact asks, a batch at a time.

    Args:
        images: Files, as `samples.image_files` finds them, or uint8 (S, H, W, C).
        preprocess: The artifact's own.
        most: How many images to take, spread evenly; the choice is always the same.
        batch: How many at once.
        fixed: Whether every batch has to be full; the last is then filled from the first.

    Yields:
        `pixel_values`, float32 (B, C, H, W).

    Raises:
        DataError: There is no image, or none may be taken.
        ImageError: One cannot be read.
    """
    if not len(images) or most < 1 or batch < 1:
        raise DataError(
            f"calibration was given {len(images)} images, to take {most} in batches of {batch}; "
            "it takes at least one of each"
        )
    chosen = chosen_images(len(images), most)
    if fixed:
        chosen = chosen[np.concatenate(batch_rows(len(chosen), batch))]
    for start in range(0, len(chosen), batch):
        part = [images[i] for i in chosen[start : start + batch]]
        yield {PIXEL_VALUES: prepare_batch(part, preprocess)}


def chosen_images(count: int, most: int = MOST) -> NDArray[np.int64]:
    """Which of `count` images are taken: `most` of them or all, evenly spread, int64."""
    spread = np.linspace(0, count - 1, min(most, count)).round()
    return np.unique(spread.astype(np.int64))

"""Feed images to a runner: prepared here, or whole to a graph that prepares them itself."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_export.artifact.preprocess import Preprocess
from vit_export.artifact.vocabulary import IMAGE
from vit_export.host.cpus import usable_cpus
from vit_export.images.decode import Pixels
from vit_export.images.prepare import normalize, resize_and_crop, whole_image
from vit_export.images.read_ahead import Prepare
from vit_export.runner import Runner, batch_size, run_filled

MAX_BATCH = 32  # images of one run, where the model takes any number
IMAGES_PER_CPU = 2  # of one run on the CPU: activations of more leave its caches
MAX_WHOLE = 8  # the same of whole photographs, which take much more memory
MAX_WHOLE_BYTES = 1 << 26  # of all images of one run


def largest_batch(provider: str) -> int:
    """Return how many images a provider runs at once; docs/performance.md has the measurement."""
    return min(MAX_BATCH, IMAGES_PER_CPU * usable_cpus()) if provider == "cpu" else MAX_BATCH


def takes_whole_images(runner: Runner) -> bool:
    """Whether a graph prepares images itself."""
    return runner.inputs[0].name == IMAGE


def preparation_for(runner: Runner) -> tuple[Prepare, int]:
    """Return what prepares one image for a runner, and how many to prepare before a run."""
    if takes_whole_images(runner):
        return whole_image, batch_size(runner, MAX_WHOLE)
    return resize_and_crop, batch_size(runner, largest_batch(runner.provider))


def run_images(
    runner: Runner, images: Sequence[Pixels], preprocess: Preprocess, output: str
) -> list[NDArray[Any]]:
    """Run images that `preparation_for` prepared; return the row of an output for each.

    Whole images are run together where their sizes are equal.
    """
    spec = runner.inputs[0]
    if not takes_whole_images(runner):
        pixel_values = normalize(np.stack(images), preprocess)
        feeds = {spec.name: pixel_values.astype(spec.dtype, copy=False)}
        return list(run_filled(runner, feeds)[output])
    rows: dict[int, NDArray[Any]] = {}
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for number, image in enumerate(images):
        by_shape.setdefault(image.shape, []).append(number)
    for numbers in by_shape.values():
        count = max(1, MAX_WHOLE_BYTES // images[numbers[0]].nbytes)
        for start in range(0, len(numbers), count):
            batch = numbers[start : start + count]
            feeds = {spec.name: np.stack([images[number] for number in batch])}
            rows |= dict(zip(batch, run_filled(runner, feeds)[output], strict=True))
    return [rows[number] for number in range(len(images))]

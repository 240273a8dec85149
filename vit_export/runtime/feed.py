"""Feed images to a runner: prepared here, or whole to a graph that prepares them itself."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_export.artifact.preprocess import Preprocess
from vit_export.artifact.vocabulary import IMAGE
from vit_export.images.decode import ImageSource, Pixels
from vit_export.images.prepare import normalize, resize_and_crop, whole_image
from vit_export.runner import Runner, batch_size, run_filled

MAX_BATCH = 32  # images of one run, where the model takes any number
MAX_WHOLE = 8  # the same of whole photographs, which take much more memory
MAX_WHOLE_BYTES = 1 << 26  # of all images of one run


def most_images(runner: Runner) -> int:
    """Return how many images to read before a run."""
    return batch_size(runner, MAX_WHOLE if takes_whole_images(runner) else MAX_BATCH)


def takes_whole_images(runner: Runner) -> bool:
    """Whether a graph prepares images itself."""
    return runner.inputs[0].name == IMAGE


def read_pixels(image: ImageSource, runner: Runner, preprocess: Preprocess) -> Pixels:
    """Return the pixels of an image, uint8 (H, W, C): of the model's size, or the whole image."""
    read = whole_image if takes_whole_images(runner) else resize_and_crop
    return read(image, preprocess)


def run_images(
    runner: Runner, images: Sequence[Pixels], preprocess: Preprocess, output: str
) -> list[NDArray[Any]]:
    """Run images that `read_pixels` returned; return the row of an output for each.

    Whole images are run together where their sizes are equal.
    """
    spec = runner.inputs[0]
    if not takes_whole_images(runner):
        pixel_values = normalize(np.stack(images), preprocess).astype(spec.dtype)
        return list(run_filled(runner, {spec.name: pixel_values})[output])
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

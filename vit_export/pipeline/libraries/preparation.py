"""Measure that images are prepared as the library of a model prepares them."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vit_export.artifact.preprocess import Preprocess, check_preprocess_fields
from vit_export.errors import ConfigError, UsageError
from vit_export.images.prepare import prepare_batch, resized_hw

SAME_LEVELS = 0.01  # of 255: what float32 rounds differently
NEEDED = {"mean", "std", "crop_pct", "interpolation"}  # the rest has usual values
HINT = "give --mean, --std, --crop-pct and --interpolation to prepare images otherwise"
# height and width of test pictures, as shares of the model's: landscape, portrait, and smaller
SHAPES = ((1.25, 1.75), (1.4, 1.25), (0.6, 0.8))

Transform = Callable[[Image.Image], NDArray[np.float32]]  # a picture to (C, H, W)


def chosen_preparation(
    size: tuple[int, int],
    channels: int,
    changes: Mapping[str, Any],
    *,
    library: Callable[[], tuple[Preprocess, Transform]],
    what: str,
) -> Preprocess:
    """Return the preparation that a library names, with the user's changes.

    It is compared with the library's own transform on test pictures. Where the user gives all
    that is `NEEDED`, the library is not asked.

    Raises:
        UsageError: The library prepares images in a way that a `Preprocess` cannot express.
    """
    check_preprocess_fields(changes)
    if set(changes) >= NEEDED:
        return Preprocess.for_images(channels, size).replace(changes)
    try:
        preprocess, transform = library()
    except ConfigError as error:
        raise UsageError(
            f"{what} are prepared in a way that vit-export lacks: {error.message}", hint=HINT
        ) from error
    if len(preprocess.mean) != channels:
        raise UsageError(
            f"{what} have {len(preprocess.mean)} channels, and {channels} were asked for: how to "
            "prepare these is unknown",
            hint=HINT,
        )
    if (levels := pixel_difference(preprocess, transform)) > SAME_LEVELS:
        raise UsageError(
            f"{what} are prepared in a way that vit-export lacks: its nearest form differs by "
            f"{levels:.3g} of 255 levels on test pictures",
            hint=HINT,
        )
    return preprocess.replace(changes)


def pixel_difference(preprocess: Preprocess, transform: Transform) -> float:
    """Return the largest difference from a library's pixels on test pictures, in levels of 255.

    Infinite where the library gives images of another shape.
    """
    scale, largest = 255 * np.array(preprocess.std)[:, None, None], 0.0
    for picture in sample_pictures(preprocess):
        theirs = transform(picture.convert(preprocess.color))
        ours = prepare_batch([picture], preprocess)[0]
        if theirs.shape != ours.shape:
            return float("inf")
        difference = np.abs(theirs.astype(np.float64) - ours) * scale
        largest = max(largest, float(difference.max()))
    return largest


def sample_pictures(preprocess: Preprocess) -> list[Image.Image]:
    """Make pictures of several aspects around a model's size, of edges, waves and noise.

    Their margins can be halved in one way only: of an odd margin, Pillow's and torchvision's image
    processors in transformers themselves leave out a row more on different sides.
    """
    made, rng, size = [], np.random.default_rng(0), preprocess.size
    for down, across in SHAPES:
        height, first = round(down * size[0]), round(across * size[1])
        widths = range(first, first + 16)
        width = next((w for w in widths if _halves_alike(height, w, preprocess)), first)
        y, x = np.mgrid[:height, :width]
        waves = [128 + 60 * np.sin((x * a + y * b) / 9) for a, b in ((1, 2), (3, 1), (-1, 1))]
        pixels = np.stack(waves, axis=-1) + rng.integers(-60, 60, (height, width, 1))
        pixels[height // 3 : height // 2, width // 4 : width // 2] = (255, 0, 40)
        made.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    return made


def _halves_alike(height: int, width: int, preprocess: Preprocess) -> bool:
    """Whether half of each margin is the same number, rounded down or to the nearest even one."""
    resized = resized_hw(height, width, preprocess)
    margins = [have - want for have, want in zip(resized, preprocess.size, strict=True)]
    return all(margin // 2 == round(margin / 2) for margin in margins)

"""Gate of a graph that prepares images itself: its pixels against those of `vit_export.images`."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vit_export.artifact.golden import random_bytes
from vit_export.artifact.manifest import Measurement, Stage
from vit_export.artifact.preprocess import Preprocess
from vit_export.artifact.vocabulary import IMAGE, PIXEL_VALUES
from vit_export.errors import ArtifactError, InputError
from vit_export.gate.distance import Array, cosine
from vit_export.images.decode import Pixels
from vit_export.images.prepare import normalize, resize_and_crop, size_before_crop
from vit_export.runner import Runner, run_filled

RUN_ERRORS = (ArtifactError, InputError)
MAX_LEVELS = 1  # of 255, by which a pixel may differ from Pillow's
# Each pass of ONNX Runtime's Resize is within one level of Pillow's. Bicubic weights can turn that
# of the first pass into two, in a few pixels at hard edges (measured: up to 16 of 150,528).
MAX_LEVELS_BEYOND, SHARE_BEYOND = 2, 1e-3
ROUNDINGS = 4  # of the dtype, between a level and its normalised value

_SCALES = (0.13, 0.5, 0.9, 1.3, 2.0, 3.1)  # of the short side before the crop
_ASPECTS = (1.0, 4 / 3, 3 / 4, 16 / 9, 0.43)  # width / height
_THIN = ((1, 1), (1, 17), (23, 1), (2, 61), (3, 2))


def gate_sizes(preprocess: Preprocess) -> list[tuple[int, int]]:
    """Return 40 sizes (H, W) of images: smaller and larger than the model's, also 1 pixel wide."""
    rows, columns = size_before_crop(preprocess)
    short = min(rows, columns)
    sizes = [preprocess.size, (rows, columns), (rows + 1, columns), (rows, columns + 1), (short, 9)]
    for scale in _SCALES:
        for aspect in _ASPECTS:
            side = scale * short
            height, width = (side, side * aspect) if aspect >= 1 else (side / aspect, side)
            sizes.append((max(1, round(height)), max(1, round(width))))
    return [*sizes, *_THIN]


def gate_image(number: int, height: int, width: int, channels: int) -> Pixels:
    """Return an image, uint8 (H, W, C): noise, squares of one colour or a ramp, by its number.

    They are computed in whole numbers, so that they are the same on every machine.
    """
    noise = random_bytes((height, width, channels), seed=number)
    rows, columns = np.arange(height), np.arange(width)
    if number % 3 == 1:
        return noise[rows // 7 * 7][:, columns // 7 * 7]
    if number % 3 == 2:
        ramp = 3 * rows[:, None, None] + 2 * columns[:, None] + 40 * np.arange(channels)
        noise = np.abs(ramp % 510 - 255).astype(np.uint8)
    return noise


def measure_preparation(part: Runner, preprocess: Preprocess, *, resize: str, stage: str) -> Stage:
    """Compare the prepared pixels of a graph with those of Pillow, on images of many sizes.

    Args:
        part: Computes `pixel_values` from `image`.
        preprocess: How images are to be prepared.
        resize: How the graph resizes, one of `RESIZE_FORMS`.
        stage: Name of the line in the certificate.

    Raises:
        ImageError: Pillow is not installed.
    """
    channels = part.inputs[0].shape[-1]
    reasons: list[str] = []
    largest, different, beyond, count, angle = 0.0, 0, 0, 0, 1.0
    sizes = gate_sizes(preprocess)
    is_cubic = resize == "op" and preprocess.interpolation == "bicubic"
    allowed = MAX_LEVELS_BEYOND if is_cubic else MAX_LEVELS
    for number, (height, width) in enumerate(sizes):
        image = gate_image(number, height, width, int(channels))
        wanted = np.moveaxis(resize_and_crop(image, preprocess), -1, 0).astype(np.float64)
        try:
            values = run_filled(part, {IMAGE: image[None]})[PIXEL_VALUES][0]
        except RUN_ERRORS as error:
            reasons.append(f"an image of {height}x{width} px fails: {error.message}")
            continue
        if values.shape != wanted.shape:
            reasons.append(f"an image of {height}x{width} px gives {values.shape}")
            continue
        levels = _levels(values, preprocess)
        distance = np.abs(levels - wanted)
        largest = max(largest, float(distance.max()) if np.isfinite(distance).all() else np.inf)
        angle = min(angle, cosine(levels.reshape(1, -1), wanted.reshape(1, -1)))
        different += int((distance > 0).sum())
        beyond += int((distance > MAX_LEVELS).sum())
        count += distance.size
        if not (distance <= allowed).all():
            reasons.append(
                f"of an image of {height}x{width} px, a pixel differs from Pillow's by "
                f"{distance.max():.0f} levels, allowed {allowed}"
            )
        elif wrong := _normalisation_error(values, levels, preprocess):
            reasons.append(f"of an image of {height}x{width} px, {wrong}")
    if beyond > SHARE_BEYOND * count and not reasons:
        reasons.append(
            f"{100 * beyond / count:.2g} % of the pixels differ from Pillow's by more than "
            f"{MAX_LEVELS} level, allowed {100 * SHARE_BEYOND:g} %"
        )
    if not reasons:
        reasons += _batch_failures(part, preprocess, int(channels))
    share = (
        f"{100 * different / max(count, 1):.2g} % of the pixels differ"
        if different
        else "none differs"
    )
    note = f"pixels of {len(sizes)} sizes of images, in levels of 255: {share} from Pillow's"
    return Stage(
        name=stage,
        provider=part.provider,
        samples=len(sizes),
        batches=(part.inputs[0].fixed_batch or 1,),
        max_abs=largest,
        tolerance=float(allowed),
        cosine=angle,
        passed=not reasons,
        reasons=_first(reasons),
        notes=(note,),
        measurements=(
            Measurement(
                output=PIXEL_VALUES,
                batch=part.inputs[0].fixed_batch or 1,
                max_abs=largest,
                tolerance=float(allowed),
                cosine=angle,
                passed=not reasons,
            ),
        ),
    )


def _levels(values: Array, preprocess: Preprocess) -> NDArray[np.float64]:
    """Return the nearest whole levels, 0 to 255, of normalised pixels (C, H, W)."""
    mean, std = (np.array(x)[:, None, None] for x in (preprocess.mean, preprocess.std))
    levels: NDArray[np.float64] = np.round((values.astype(np.float64) * std + mean) * 255)
    return levels


def _normalisation_error(values: Array, levels: NDArray[np.float64], preprocess: Preprocess) -> str:
    """Return how the values differ from the normalised levels; empty where they do not."""
    expected = normalize(np.moveaxis(levels, 0, -1), preprocess)
    error = float(np.abs(values.astype(np.float64) - expected).max())
    allowed = (
        ROUNDINGS * float(np.finfo(values.dtype).eps) * max(1.0, float(np.abs(expected).max()))
    )
    if error <= allowed:
        return ""
    return f"values are off by {error:.3g} from the normalised pixels, allowed {allowed:.3g}"


def _batch_failures(part: Runner, preprocess: Preprocess, channels: int) -> Iterator[str]:
    """Check that an image in a batch is prepared as it is alone."""
    size = part.inputs[0].fixed_batch or 3
    height, width = (2 * side - 1 for side in preprocess.size)
    images = np.stack([gate_image(number, height, width, channels) for number in range(size)])
    try:
        together = part.run({IMAGE: images})[PIXEL_VALUES]
    except RUN_ERRORS as error:
        yield f"a batch of {size} images fails: {error.message}"
        return
    for row, image in zip(together, images, strict=True):
        alone = run_filled(part, {IMAGE: image[None]})[PIXEL_VALUES][0]
        if not np.array_equal(row, alone):
            yield f"in a batch of {size}, an image is prepared in another way than alone"
            return


def _first(reasons: list[str]) -> tuple[str, ...]:
    rest = len(reasons) - 3
    return (*reasons[:3], *([f"and so for {rest} more images"] if rest > 0 else []))

"""Record the golden file of a loaded model."""

from __future__ import annotations

import dataclasses
import os

import numpy as np

from vit_export.artifact.golden import Golden, pictures
from vit_export.images.folder import user_pictures
from vit_export.images.prepare import normalize
from vit_export.pipeline.source import LoadedSource
from vit_export.progress import Progress
from vit_export.reference.oracle import record


def record_golden(
    source: LoadedSource, images: str | os.PathLike[str] | None, progress: Progress
) -> Golden:
    """Run a model in float64, float32, float16 and bfloat16 on the golden images.

    Args:
        source: The model.
        images: Folder of images to add to the synthetic ones.
        progress: Called with each encoder block.
    """
    preprocess = source.preprocess

    def at(size: tuple[int, int], folder: str | os.PathLike[str] | None = None) -> Golden:
        shown = pictures(*size, len(preprocess.mean))
        if folder is not None:
            shown = np.concatenate([shown, user_pictures(folder, preprocess)])
        inputs = {source.inputs[0].name: normalize(shown, preprocess)}
        return record(source.model, inputs, images=shown, progress=progress)

    others = tuple(at(size) for size in source.other_sizes)
    return dataclasses.replace(at(preprocess.size, images), others=others)

"""Record the golden file of a loaded model, and choose how its logits become scores."""

from __future__ import annotations

import dataclasses
import os

import numpy as np

from vit_export.artifact.golden import Golden, pictures
from vit_export.artifact.vocabulary import LOGITS, Activation
from vit_export.images.folder import user_pictures
from vit_export.images.prepare import normalize
from vit_export.pipeline.source import LoadedSource
from vit_export.progress import Progress
from vit_export.reference.oracle import record


def record_golden(
    source: LoadedSource, images: str | os.PathLike[str] | None, progress: Progress
) -> Golden:
    """Run a model in float64, float32, float16 and bfloat16 on the golden images.

    The golden images are synthetic; those of a folder are added to them.
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


def choose_activation(
    loaded: LoadedSource, golden: Golden, wanted: Activation | None
) -> tuple[Activation, tuple[str, ...]]:
    """Return how logits become scores, and a note where that is neither usual nor asked for.

    The float64 outputs show whether a user's module ends in a softmax, whose rows add up to 1, or
    in a sigmoid, whose values lie between 0 and 1.
    """
    found = wanted or loaded.activation
    if found is not None:
        if wanted or found == "softmax":
            return found, ()
        return found, (
            f"the checkpoint's config says that the activation of its scores is {found}; "
            "--activation softmax changes it",
        )
    logits = golden.outputs.get(LOGITS)
    if logits is None or logits.ndim != 2 or logits.min() < 0 or logits.max() > 1:
        return "softmax", ()
    if abs(logits.sum(axis=1) - 1).max() < 1e-6:
        last = "softmax (each row adds up to 1)"
    elif logits.min() > 0 and logits.max() < 1:
        last = "sigmoid (each value lies between 0 and 1)"
    else:
        return "softmax", ()
    return "none", (
        f"the module seems to end in a {last}, so predict shows its outputs unchanged; "
        "--activation softmax applies a softmax to them",
    )

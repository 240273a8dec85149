"""Record the golden file of a loaded model, and choose how its logits become scores."""

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
    """Record the reference on synthetic golden images, and on those of a folder if there is one."""
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
    chosen = wanted or loaded.activation
    if chosen is not None:
        if wanted or chosen == "softmax":
            return chosen, ()
        return chosen, (
            f"the checkpoint's config says that the activation of its scores is {chosen}; "
            "--activation softmax changes it",
        )
    logits = golden.outputs.get(LOGITS)
    if logits is None or logits.ndim != 2:
        return "softmax", ()
    if logits.min() >= 0 and abs(logits.sum(axis=1) - 1).max() < 1e-6:
        last = "softmax (each row adds up to 1)"
    elif logits.min() > 0 and logits.max() < 1:
        last = "sigmoid (each value lies between 0 and 1)"
    else:
        return "softmax", ()
    return "none", (
        f"the module seems to end in a {last}, so predict shows its outputs unchanged; "
        "--activation softmax applies a softmax to them",
    )

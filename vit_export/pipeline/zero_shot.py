"""Give an image encoder a head of text embeddings, so that it classifies by the user's words."""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vit_export.artifact.text_embeddings import TextEmbeddings
from vit_export.artifact.vocabulary import FEATURES, LOGITS
from vit_export.errors import UsageError, check_known
from vit_export.model.zero_shot import ZeroShotHead
from vit_export.pipeline.settings import ExportSettings
from vit_export.reference.example import example_input
from vit_export.reference.outputs import Outputs

if TYPE_CHECKING:
    from vit_export.pipeline.source import LoadedSource


def encoder_settings(settings: ExportSettings) -> ExportSettings:
    """Return the settings of the encoder alone: without what its head will add."""
    if settings.labels:
        raise UsageError("--labels and --text-embeddings are two sources of the class names")
    others = tuple(name for name in settings.outputs if name != LOGITS)
    return replace(settings, outputs=others or (LOGITS,), text_embeddings=None)


def with_text_head(
    loaded: "LoadedSource", path: str | os.PathLike[str], settings: ExportSettings
) -> "LoadedSource":
    """Return an encoder with a head of the text embeddings in a file.

    Raises:
        UsageError: The file is wrong, its vectors have another width than the features, or the
            model has classes of its own.
    """
    embeddings, encoder = TextEmbeddings.read(path), loaded.model
    if FEATURES not in encoder.names or LOGITS in encoder.names:
        found = "a head of its own" if FEATURES in encoder.names else "no output 'features'"
        raise UsageError(
            f"--text-embeddings: {loaded.variant} has {found}, expected an image encoder",
            hint="--num-classes 0 leaves a head out; a module returns {'features': ...}",
        )
    with torch.no_grad():
        sizes = loaded.example_sizes or None
        results = encoder(example_input(loaded.inputs[0], sizes))
    features, width = results[encoder.names.index(FEATURES)], embeddings.vectors.shape[1]
    if features.ndim != 2 or features.shape[1] != width:
        raise UsageError(
            f"--text-embeddings {path}: its vectors have {width} numbers, and the features of "
            f"{loaded.variant} have the shape (B, {', '.join(map(str, features.shape[1:]))})",
            hint="texts and images must be embedded by the two halves of one model, each with its "
            "projection",
        )
    model = _with_head(encoder, ZeroShotHead(embeddings))
    for name in settings.outputs:
        check_known("output", name, model.names)
    count, notes = len(embeddings.names), list(loaded.notes)
    if not embeddings.scale_given:
        notes.append(
            f"{embeddings.source} gives no scale, so that scores are those of bare cosines, nearly "
            "alike: CLIP's and SigLIP's models have one"
        )
    return replace(
        loaded,
        model=model,
        outputs=tuple(settings.outputs),
        labels=embeddings.names,
        weights=loaded.weights.replace(
            changes=(
                *loaded.weights.changes,
                f"zero-shot head of {count} text embeddings of {embeddings.source}",
            )
        ),
        activation="softmax" if embeddings.bias is None else "sigmoid",
        activation_from="bias of the text embeddings",
        notes=tuple(notes),
    )


def _with_head(encoder: Outputs, head: ZeroShotHead) -> Outputs:
    """Return the outputs of an encoder, and before them the logits of a head on its features."""

    def compute(*inputs: Tensor) -> Mapping[str, Tensor]:
        results = encoder.compute(*inputs)
        return {**results, LOGITS: head(results[FEATURES])}

    names = (LOGITS, *encoder.names)
    made = Outputs(encoder.module, names=names, compute=compute, taps=encoder.taps, head=head)
    made.read, made.fixed_batch = encoder.read, encoder.fixed_batch
    return made

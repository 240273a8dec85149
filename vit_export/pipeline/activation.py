"""Choose how the logits of an artifact become scores."""

from __future__ import annotations

from vit_export.artifact.golden import Golden
from vit_export.artifact.vocabulary import LOGITS, Activation
from vit_export.pipeline.settings import ExportSettings
from vit_export.pipeline.source import LoadedSource


def choose_activation(
    loaded: LoadedSource, golden: Golden, settings: ExportSettings
) -> tuple[Activation, tuple[str, ...]]:
    """Return how logits become scores, and a note where that is neither usual nor asked for."""
    if settings.activation is not None:
        return settings.activation, ()
    if loaded.activation is None:
        return _detect(golden)
    if loaded.activation == "softmax":
        return "softmax", ()
    return loaded.activation, (
        f"the checkpoint's config says that the activation of its scores is {loaded.activation}; "
        "--activation softmax changes it",
    )


def _detect(golden: Golden) -> tuple[Activation, tuple[str, ...]]:
    """Find out whether a module's outputs are probabilities already.

    The rows of a softmax add up to 1; each value of a sigmoid lies between 0 and 1. Both are
    judged by the float64 outputs on all golden images.
    """
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

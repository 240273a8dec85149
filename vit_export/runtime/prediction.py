"""Turn logits into labelled predictions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vit_export.artifact.vocabulary import Activation
from vit_export.gate.scores import SCORES

PRESENT = 0.5  # score from which a label of a multi-label model counts as present


@dataclass(frozen=True)
class Prediction:
    """One class of an image, with its score.

    Attributes:
        index: Class number.
        label: Class name; `"class 7"` where the artifact carries no labels.
        score: Probability by softmax or, of each label by itself, by sigmoid; the model's own
            output where the manifest's activation is `"none"`.
    """

    index: int
    label: str
    score: float


def predict(
    logits: NDArray[np.generic], *, activation: Activation, labels: Sequence[str], top: int
) -> list[Prediction]:
    """Return the best classes of one image, best first; equal scores keep the classes' order.

    Logits have the shape (num_classes,). With sigmoid, all further classes with a score of at
    least `PRESENT` are returned too.
    """
    scores = SCORES[activation](logits.astype(np.float64))
    if activation == "sigmoid":
        top = max(top, int((scores >= PRESENT).sum()))
    top = min(top, len(scores))
    best = np.flatnonzero(scores >= np.partition(scores, -top)[-top])  # a tenth of a sort's time
    order = best[np.argsort(-scores[best], kind="stable")][:top]
    return [
        Prediction(int(i), labels[i] if i < len(labels) else f"class {i}", float(scores[i]))
        for i in order
    ]

"""Scores of logits, and the check of a graph that computes them itself."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_export.artifact.vocabulary import (
    LOGITS,
    PROBABILITIES,
    SCORE_OUTPUTS,
    TOP_INDEX,
    TOP_SCORE,
    Activation,
)

MAX_SCORE_ERROR = 1e-6  # of a probability in float32


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return probabilities that sum to 1 along the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: NDArray[np.float64] = shifted / shifted.sum(axis=-1, keepdims=True)
    return probabilities


def sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probability of each label by itself, without overflow."""
    return np.exp(-np.logaddexp(0.0, -logits))


SCORES: Mapping[Activation, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "none": lambda logits: logits,
}


def score_failures(outputs: Mapping[str, NDArray[Any]], activation: Activation) -> Iterator[str]:
    """Check probabilities and best classes of one batch against its logits."""
    if not set(SCORE_OUTPUTS) <= set(outputs):
        return
    expected = SCORES[activation](outputs[LOGITS].astype(np.float64))
    probabilities, index, score = (outputs[name] for name in SCORE_OUTPUTS)
    error = float(np.abs(probabilities - expected).max())
    allowed = MAX_SCORE_ERROR * max(1.0, float(np.abs(expected).max()))
    if outputs[LOGITS].dtype != np.float32:  # a runtime may leave out their rounding before scores
        allowed += float(np.finfo(np.float16).eps * np.abs(outputs[LOGITS]).max())
    if not error <= allowed:
        yield f"{PROBABILITIES} are off by {error:.3g} from the logits' own, allowed {allowed:.3g}"
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, : index.shape[1]]
    if not np.array_equal(index, best):
        yield f"{TOP_INDEX} are not the classes of the largest probabilities"
    elif not np.array_equal(score, np.take_along_axis(probabilities, best, axis=1)):
        yield f"{TOP_SCORE} are not the largest probabilities"

"""Images on which rounding cannot change which tokens are merged.

Merging chooses the most similar tokens. Where two similarities are nearly equal, float32 and
float64 can choose differently; then their outputs differ by more than rounding, although both are
right. Such images show nothing about an export.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vit_export.gate.tolerances import tolerances_of
from vit_export.model.token_merging import Matching
from vit_export.reference.outputs import Outputs
from vit_export.reference.precision import in_float64, to_float64


def without_near_ties(model: Outputs, images: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Find the images (S, C, H, W) whose choices an artifact within the fp32 tolerance repeats.

    The similarities of an artifact may be as far from float64 as the gate allows, given the error
    of torch float32. Every margin of a choice must be more than twice as large.
    """
    stable, limits = [], tolerances_of("fp32", source="fp32")
    for image in images:
        x = torch.from_numpy(image[None])
        exact = _similarities(model, to_float64(x), in_float64)
        single = _similarities(model, x, lambda _: nullcontext())
        error = max(
            float((a - b).abs().max()) for (a, _), (b, _) in zip(exact, single, strict=True)
        )
        allowed = max(limits.factor * error, limits.floor)  # of cosines, at most 1
        margin = min(choice_margin(scores, pairs) for scores, pairs in exact)
        stable.append(margin > 2 * allowed)
    return np.array(stable)


def choice_margin(scores: Tensor, pairs: int) -> float:
    """Return how far the chosen similarities (1, a, b) are above those that were not chosen.

    Fewer pairs than a are chosen: the best partner of each token of A, of the most similar tokens.
    """
    partners = F.pad(scores[0], (0, 1), value=-torch.inf).topk(2, dim=1).values  # (a, 2)
    best = partners[:, 0].sort(descending=True)
    to_next_partner = (partners[:, 0] - partners[:, 1])[best.indices[:pairs]]
    to_next_token = best.values[pairs - 1] - best.values[pairs]
    return float(torch.minimum(to_next_partner.min(), to_next_token))


def _similarities(
    model: Outputs, x: Tensor, mode: Callable[[Outputs], AbstractContextManager[None]]
) -> list[tuple[Tensor, int]]:
    """Return the similarities of each block on one image, and the number of its pairs."""
    found: list[tuple[Tensor, int]] = []

    def keep(matching: Matching, keys: tuple[Tensor]) -> None:
        found.append((matching.similarity(keys[0]).double(), matching.pairs))

    with ExitStack() as stack, torch.no_grad():
        for module in model.modules():
            if isinstance(module, Matching):
                stack.enter_context(module.register_forward_pre_hook(keep))
        with mode(model):
            model(x)
    return found

"""torch, eager or compiled."""

from __future__ import annotations

import torch

from peers.timm_model import timm_model
from peers.turns import Run, answer


def load(variant: str, weights: str, threads: int, *, compiled: bool) -> Run:
    """Return timm's model as a function of an array."""
    torch.set_num_threads(threads)
    model = timm_model(variant, weights)
    forward = torch.compile(model, dynamic=False) if compiled else model

    def run(pixel_values):
        with torch.inference_mode():
            return forward(torch.from_numpy(pixel_values)).numpy()

    return run


if __name__ == "__main__":
    answer(load)

"""timm's own loop over a folder of photographs: its dataset, its loader, its model.

The calls are those of `inference.py` in timm's repository.
"""

from __future__ import annotations

import torch

from peers.timm_model import photograph_loader, timm_model
from peers.turns import Run, answer


def load(variant: str, weights: str, threads: int, batch: int) -> Run:
    """Return the best class of every photograph as a function of a folder."""
    torch.set_num_threads(threads)
    model = timm_model(variant, weights)

    def run(folder: str) -> list[int]:
        loader = photograph_loader(model, folder, batch, threads)
        with torch.inference_mode():
            return [n for images, _ in loader for n in model(images).argmax(1).tolist()]

    return run


if __name__ == "__main__":
    answer(load)

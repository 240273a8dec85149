"""Hugging Face's image-classification pipeline on a folder of photographs."""

from __future__ import annotations

from pathlib import Path

import peers.torchvision_operators  # noqa: F401  (before transformers imports torchvision)

# isort: split
import torch
from transformers import pipeline

from peers.turns import Run, answer


def load(model: str, threads: int, batch: int) -> Run:
    """Return the best class of every photograph as a function of a folder."""
    torch.set_num_threads(threads)
    classify = pipeline("image-classification", model=model, device="cpu", batch_size=batch)

    def run(folder: str) -> list[str]:
        photographs = [str(path) for path in sorted(Path(folder).iterdir())]
        return [best["label"] for (best,) in classify(photographs, top_k=1)]

    return run


if __name__ == "__main__":
    answer(load)

"""`classify` of a folder of photographs."""

from __future__ import annotations

import vit_export
from peers.turns import Run, answer


def load(path: str, threads: int) -> Run:
    """Return the best class of every photograph as a function of a folder."""
    model = vit_export.load(path, provider="cpu", threads=threads)
    return lambda folder: [best.index for (best,) in model.classify([folder], top=1)]


if __name__ == "__main__":
    answer(load)

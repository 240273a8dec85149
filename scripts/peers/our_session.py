"""A file of vit-export in its own runtime."""

from __future__ import annotations

import vit_export
from peers.turns import Run, answer


def load(path: str, threads: int) -> Run:
    """Return the logits as a function of pixel values."""
    return vit_export.load(path, provider="cpu", threads=threads).run


if __name__ == "__main__":
    answer(load)

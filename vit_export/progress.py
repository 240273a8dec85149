"""How long work tells where it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called as work goes on.

    Args:
        stage: What is being done.
        done: How many steps of it are done.
        total: Of how many; 0 where nobody knows.
    """

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None: ...


def silent(stage: str, done: int = 0, total: int = 0) -> None:
    """Tell nobody."""

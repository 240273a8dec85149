"""Progress callbacks."""

from typing import Protocol


class Progress(Protocol):
    """Called with the current step of long work; `total` is 0 where it is unknown."""

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None: ...


def silent(stage: str, done: int = 0, total: int = 0) -> None:
    """Ignore progress."""

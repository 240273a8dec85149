"""Progress callbacks."""

from typing import Protocol


class Progress(Protocol):
    """Called with the current step of long work.

    Args:
        stage: The current step.
        done: How much of the step is done.
        total: How much there is to do; 0 where unknown.
    """

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None: ...


def silent(stage: str, done: int = 0, total: int = 0) -> None:
    """Ignore progress."""

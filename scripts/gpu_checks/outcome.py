"""What a check says: passed, FAILED, or not run and why. Standard library only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PASSED, FAILED, NOT_RUN = STATUSES = "passed", "FAILED", "not run"


class NotRunError(Exception):
    """Something that the check needs is not there; the message says what."""


class FailedError(Exception):
    """The check ran, and found what must not be."""


@dataclass(frozen=True)
class Outcome:
    """What became of one check.

    Attributes:
        name: e.g. `"cuda parity b16 fp16"`.
        status: `PASSED`, `FAILED` or `NOT_RUN`.
        why: The reason of the last two.
        measured: What was measured, by name; units stand in the names.
        seconds: How long it took.
    """

    name: str
    status: str
    why: str = ""
    measured: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Check:
    """One check: a function that returns what it measured, or raises.

    Attributes:
        name: Unique.
        function: Takes the working folder and `arguments`.
        arguments: e.g. the variant and the precision.
        timeout_s: After which the process is ended and the check has failed.
        runs_artifact: Whether it passes only when an artifact ran on the GPU.
        after: A check that must have passed in the same run; this one looks at what it made.
    """

    name: str
    function: Callable[..., dict[str, Any]]
    arguments: tuple[Any, ...] = ()
    timeout_s: int = 120
    runs_artifact: bool = False
    after: str = ""

    def run(self, folder: Path) -> Outcome:
        """Run it here; what it raises beyond `NotRunError` and `FailedError` ends the process."""
        try:
            return Outcome(self.name, PASSED, measured=self.function(folder, *self.arguments))
        except NotRunError as error:
            return Outcome(self.name, NOT_RUN, why=str(error))
        except FailedError as error:
            return Outcome(self.name, FAILED, why=str(error))


def expect(condition: bool, otherwise: str) -> None:
    """Raise FailedError with the reason unless the condition holds."""
    if not condition:
        raise FailedError(otherwise)

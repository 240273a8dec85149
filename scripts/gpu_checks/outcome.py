"""Outcome of a check: passed, FAILED, or not run, and why. Standard library only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PASSED, FAILED, NOT_RUN = STATUSES = "passed", "FAILED", "not run"


class NotRunError(Exception):
    """A requirement of the check is missing; the message names it."""


class FailedError(Exception):
    """The check ran and found a fault."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of one check.

    Attributes:
        name: e.g. `"cuda parity b16 fp16"`.
        status: `PASSED`, `FAILED` or `NOT_RUN`.
        why: The reason, unless it passed.
        measured: Figures by name; the names contain the units.
        seconds: Duration.
    """

    name: str
    status: str
    why: str = ""
    measured: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Check:
    """One check: a function that returns what it measured, or raises.

    Attributes:
        name: Unique.
        function: Takes the working folder and `arguments`.
        arguments: e.g. the variant and the precision.
        timeout_s: Time after which the process is killed and the check has failed.
        runs_artifact: Whether it passes only when an artifact ran on the GPU.
        after: A check of the same run that must have passed, because this one uses its files.
    """

    name: str
    function: Callable[..., dict[str, Any]]
    arguments: tuple[Any, ...] = ()
    timeout_s: int = 120
    runs_artifact: bool = False
    after: str = ""

    def run(self, folder: Path) -> Outcome:
        """Run it in this process; other errors than NotRunError and FailedError are not caught."""
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

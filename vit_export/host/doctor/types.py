"""What a diagnosis consists of: facts, faults, and what can be done."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Fact:
    """Something found on this machine.

    Attributes:
        topic: `"system"`, `"package"`, `"gpu"`, `"library"` or `"provider"`.
        name: e.g. `"torch"` or `"CUDAExecutionProvider"`.
        value: A version, a description, or why it is not there.
        usable: Whether it can be used here.
    """

    topic: str
    name: str
    value: str
    usable: bool


@dataclass(frozen=True)
class Fault:
    """Something that is broken, and the one command (or act) that mends it."""

    what: str
    remedy: str


@dataclass(frozen=True)
class Ability:
    """Something that can be done here, or not.

    Attributes:
        name: e.g. `"run on CUDA"`.
        possible: Whether it can be done.
        reason: Why not, or with which restriction.
        remedy: What would change that.
    """

    name: str
    possible: bool
    reason: str = ""
    remedy: str = ""


Facts = tuple[Fact, ...]
Finding = tuple[Facts, tuple[Fault, ...]]
Check = Callable[[Facts], Finding]


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was found, in the order in which it was looked for."""

    facts: Facts
    faults: tuple[Fault, ...]
    abilities: tuple[Ability, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        return dataclasses.asdict(self)


def find(facts: Facts, topic: str, name: str) -> Fact:
    """The fact of that name; an unusable one where nothing was found."""
    matches = (fact for fact in facts if (fact.topic, fact.name) == (topic, name))
    return next(matches, Fact(topic, name, "not available", usable=False))


def has_gpu(facts: Facts) -> bool:
    """Whether the driver runs and offers a GPU."""
    return find(facts, "gpu", "driver").usable

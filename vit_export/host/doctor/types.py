"""Parts of a diagnosis: facts, faults and abilities."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Fact:
    """Something that was looked for on this machine.

    Attributes:
        topic: `"system"`, `"package"`, `"gpu"`, `"library"` or `"provider"`.
        name: e.g. `"torch"` or `"CUDAExecutionProvider"`.
        value: A version, a description, or why it is missing.
        usable: Whether it can be used here.
    """

    topic: str
    name: str
    value: str
    usable: bool


@dataclass(frozen=True)
class Fault:
    """Something broken, and the one command (or action) that fixes it."""

    what: str
    remedy: str


@dataclass(frozen=True)
class Ability:
    """Something that vit-export does, and whether this machine can do it.

    Attributes:
        name: e.g. `"run on CUDA"`.
        possible: Whether it can be done.
        reason: Why not, or with which restriction.
        remedy: What makes it possible.
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
    """Facts and faults in the order of the checks, and every ability."""

    facts: Facts
    faults: tuple[Fault, ...]
    abilities: tuple[Ability, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as JSON values."""
        return dataclasses.asdict(self)


def find(facts: Facts, topic: str, name: str) -> Fact:
    """Return the fact of that name, or one that is not usable where there is none."""
    matches = (fact for fact in facts if (fact.topic, fact.name) == (topic, name))
    return next(matches, Fact(topic, name, "not available", usable=False))


def has_gpu(facts: Facts) -> bool:
    """Return whether NVIDIA's driver works and lists a GPU."""
    return find(facts, "gpu", "driver").usable

"""`vit-export doctor`: what this machine can run, and how to fix each problem."""

from __future__ import annotations

from dataclasses import dataclass

from vit_export.host.doctor.abilities import Ability, abilities_of
from vit_export.host.doctor.checks import CHECKS, Facts, Fault, run_checks


@dataclass(frozen=True)
class Diagnosis:
    """Facts and faults in the order of the checks, and every ability."""

    facts: Facts
    faults: tuple[Fault, ...]
    abilities: tuple[Ability, ...]


def examine() -> Diagnosis:
    """Diagnose this machine; takes a few seconds, more where TensorRT is installed."""
    facts, faults = run_checks(*CHECKS)
    return Diagnosis(facts, faults, abilities_of(facts))

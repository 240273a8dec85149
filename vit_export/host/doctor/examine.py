"""Diagnose this machine: every check, then what can be done with what they found.

Nothing that may crash or print is loaded into this process: versions are read from package
metadata, and NVIDIA's driver and ONNX Runtime are tried in child processes.
"""

from __future__ import annotations

from vit_export.host.doctor.abilities import abilities
from vit_export.host.doctor.checks import (
    check_libraries,
    check_onnxruntime,
    check_packages,
    check_system,
    check_tensorrt,
)
from vit_export.host.doctor.gpu import check_gpu
from vit_export.host.doctor.types import Check, Diagnosis, Facts, Fault

# In this order: each check gets the facts of those before it.
CHECKS: tuple[Check, ...] = (
    check_system,
    check_packages,
    check_gpu,
    check_libraries,
    check_tensorrt,
    check_onnxruntime,
)


def examine() -> Diagnosis:
    """Diagnose this machine; takes a few seconds, more where TensorRT is installed."""
    facts: Facts = ()
    faults: tuple[Fault, ...] = ()
    for check in CHECKS:
        new_facts, new_faults = check(facts)
        facts, faults = facts + new_facts, faults + new_faults
    return Diagnosis(facts, faults, abilities(facts))

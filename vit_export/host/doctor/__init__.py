"""What this machine can do with a Vision Transformer, and what mends each fault.

Nothing that may crash or print is loaded into this process: versions are read from package
metadata, what a library is linked with off its file, and `probe` tries the NVIDIA driver and
ONNX Runtime in child interpreters.
"""

from __future__ import annotations

from vit_export.host.doctor.abilities import ABILITIES
from vit_export.host.doctor.driver import check_nvidia
from vit_export.host.doctor.packages import EXTRAS, check_packages, check_system
from vit_export.host.doctor.runtimes import check_libraries, check_onnxruntime, check_tensorrt
from vit_export.host.doctor.types import Ability, Check, Diagnosis, Fact, Facts, Fault

__all__ = ["EXTRAS", "Ability", "Diagnosis", "Fact", "Facts", "Fault", "examine"]

# In this order: each sees the facts of those before it.
CHECKS: tuple[Check, ...] = (
    check_system,
    check_packages,
    check_nvidia,
    check_libraries,
    check_tensorrt,
    check_onnxruntime,
)


def examine() -> Diagnosis:
    """Look at this machine; takes a few seconds, more where TensorRT is installed."""
    facts: Facts = ()
    faults: tuple[Fault, ...] = ()
    for check in CHECKS:
        found, broken = check(facts)
        facts, faults = facts + found, faults + broken
    return Diagnosis(facts, faults, tuple(ability(facts) for ability in ABILITIES))

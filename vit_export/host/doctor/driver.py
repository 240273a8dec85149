"""NVIDIA's driver and GPUs."""

from __future__ import annotations

import re

from vit_export.host.doctor.types import Fact, Facts, Fault, Finding
from vit_export.host.probes import in_child, probe_nvidia

OLDEST_CAPABILITY = (7, 5)  # CUDA 13 compiles for Turing and newer


def check_nvidia(facts: Facts) -> Finding:
    """NVIDIA's driver and GPUs, as the driver itself describes them."""
    answer = in_child(probe_nvidia)
    if answer.get("absent"):
        return (Fact("gpu", "driver", answer["absent"], usable=False),), ()
    if "error" in answer:
        what = f"the NVIDIA driver is installed and does not work: {answer['error']}"
        remedy = "sudo reboot  # after a driver update; in a container: start it with --gpus all"
        return (Fact("gpu", "driver", answer["error"], usable=False),), (Fault(what, remedy),)
    found = [Fact("gpu", "driver", f"CUDA {answer['cuda']}", usable=bool(answer["gpus"]))]
    found += [Fact("gpu", f"GPU {n}", text, usable=True) for n, text in enumerate(answer["gpus"])]
    return tuple(found), ()


def capability(facts: Facts) -> tuple[int, int]:
    """Compute capability of the first GPU, e.g. (8, 9); (0, 0) where it is not known."""
    texts = (fact.value for fact in facts if fact.topic == "gpu" and fact.name != "driver")
    for text in texts:
        if match := re.search(r"compute capability (\d+)\.(\d+)", text):
            return int(match[1]), int(match[2])
    return 0, 0

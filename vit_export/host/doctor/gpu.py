"""NVIDIA's driver and GPUs. Standard library only, so that scripts can use it alone."""

from __future__ import annotations

import re

from vit_export.host.doctor.types import Fact, Facts, Fault, Finding
from vit_export.host.probes import probe_nvidia, run_probe

OLDEST_CAPABILITY = (7, 5)  # CUDA 13 compiles for Turing and newer


def check_gpu(facts: Facts) -> Finding:
    """Read NVIDIA's driver version and its GPUs; a machine without a driver has no fault."""
    answer = run_probe(probe_nvidia)
    if "absent" in answer:
        return (Fact("gpu", "driver", answer["absent"], usable=False),), ()
    if "error" in answer:
        what = f"the NVIDIA driver is installed and does not work: {answer['error']}"
        remedy = "sudo reboot  # after a driver update; in a container: start it with --gpus all"
        return (Fact("gpu", "driver", answer["error"], usable=False),), (Fault(what, remedy),)
    driver = Fact("gpu", "driver", f"CUDA {answer['cuda']}", usable=bool(answer["gpus"]))
    gpus = (Fact("gpu", f"GPU {n}", text, usable=True) for n, text in enumerate(answer["gpus"]))
    return (driver, *gpus), ()


def capability(facts: Facts) -> tuple[int, int]:
    """Return the compute capability of the first GPU, e.g. (8, 9); (0, 0) where it is unknown."""
    texts = (fact.value for fact in facts if fact.topic == "gpu" and fact.name != "driver")
    for text in texts:
        if match := re.search(r"compute capability (\d+)\.(\d+)", text):
            return int(match[1]), int(match[2])
    return 0, 0

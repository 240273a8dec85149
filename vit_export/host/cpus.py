"""Number of CPUs that this process may use: its affinity, and the quota of its control groups."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def usable_cpus(root: Path = ROOT) -> int:
    """Return how many CPUs this process may keep busy, at least 1; part of a CPU counts as one.

    A container's limit (`docker --cpus`, Kubernetes `limits.cpu`) is a quota of its control group,
    which neither `os.cpu_count` nor ONNX Runtime regards (microsoft/onnxruntime, issue 29510).

    Args:
        root: Folder of `proc` and `sys`, for tests.
    """
    quota = cpu_quota(root)
    cpus = allowed_cpus()
    return cpus if quota is None else max(1, min(cpus, math.ceil(quota)))


def allowed_cpus() -> int:
    """Return how many CPUs the scheduler may run this process on."""
    if hasattr(os, "sched_getaffinity"):  # not on a Mac, nor on Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota(root: Path = ROOT) -> float | None:
    """Return the smallest quota, in CPUs, of this process's control groups; `None` without one.

    Linux documentation, "Control Group v2": `cpu.max`; "CFS Bandwidth Control": version 1's files.
    """
    return min(filter(None, map(_quota, _groups(root))), default=None)


def _groups(root: Path) -> Iterator[Path]:
    """Yield the folders of this process's control groups, and all folders above them.

    A container may see the path of the host, of which only the mounted root exists.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return  # not Linux
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        for name in ("cpu", controllers) if controllers else ("", "unified"):
            mount = root / "sys/fs/cgroup" / name
            group = mount / path.lstrip("/")
            yield group
            yield from (parent for parent in group.parents if parent.is_relative_to(mount))


def _quota(group: Path) -> float | None:
    """Return the quota of one control group, in CPUs; `None` where there is none."""
    try:
        if (group / "cpu.max").exists():  # version 2: "max 100000", or "150000 100000"
            quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
        else:  # version 1: -1, or microseconds
            quota, period = (
                (group / f"cpu.cfs_{name}_us").read_text(encoding="ascii").strip()
                for name in ("quota", "period")
            )
    except (OSError, ValueError):
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)

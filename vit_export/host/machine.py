"""The machine that something was measured on, in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from vit_export import __version__
from vit_export.host.probes import in_child, probe_nvidia

BUSY_SHARE = 0.5  # of the cores, in use by others: times are then theirs as well


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a measured time depends on, beside what was measured.

    Attributes:
        processor: e.g. `"AMD EPYC 7B13"`.
        cores: CPUs that this process may use.
        memory_bytes: Physical memory; `None` where the system does not say.
        load_average: Processes that were running over the last minute; `None` where the system
            does not say. Well above 0 at the start, others were using the machine.
        others_after: The same when the measuring had ended, less the threads that it used
            itself; `None` before.
        system: e.g. `"Linux x86_64"`.
        gpus: Descriptions by NVIDIA's driver.
        versions: Of Python and of the packages that take part.
    """

    processor: str
    cores: int
    memory_bytes: int | None
    load_average: float | None
    system: str
    others_after: float | None = None
    gpus: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def busy(self) -> bool:
        """Whether others took a good part of it when it was looked at."""
        others = max(self.load_average or 0.0, self.others_after or 0.0)
        return others > BUSY_SHARE * self.cores

    def after(self, threads: int | None) -> Machine:
        """This machine as it is when something has run on it, on all cores or some threads."""
        load = _load_average()
        own = self.cores if threads is None else min(threads, self.cores)
        others = None if load is None else max(0.0, load - own)
        return dataclasses.replace(self, others_after=others)


def this_machine(packages: Iterable[str]) -> Machine:
    """Look at this machine; the driver is asked in a process of its own.

    Args:
        packages: Distributions whose versions matter; those that are not installed are left out.
    """
    versions = {"vit-export": __version__, "python": platform.python_version()}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return Machine(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        memory_bytes=_memory_bytes(),
        load_average=_load_average(),
        system=f"{platform.system()} {platform.machine()}",
        gpus=tuple(in_child(probe_nvidia).get("gpus", ())),
        versions=versions,
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _load_average() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _memory_bytes() -> int | None:
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

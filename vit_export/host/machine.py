"""Description of the machine that a time was measured on."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from vit_export import __version__
from vit_export.host.cpus import usable_cpus
from vit_export.host.nvidia import version_of
from vit_export.host.probes import probe_nvidia, run_probe

BUSY_SHARE = 0.5  # of the cores in use by other processes, which then change the times


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine, its load and its software versions; `None` where the system reports nothing."""

    processor: str  # e.g. "AMD EPYC 7B13"
    cores: int  # CPUs that this process may use
    memory_bytes: int | None  # physical memory
    load_average: float | None  # running processes over the last minute, before the measurement
    system: str  # e.g. "Linux x86_64"
    others_after: float | None = None  # load after the measurement, without its own threads
    gpus: tuple[str, ...] = ()  # descriptions from NVIDIA's driver
    versions: dict[str, str] = field(default_factory=dict)  # of Python and of packages

    @property
    def busy(self) -> bool:
        """Whether other processes used a good part of the cores."""
        others = max(self.load_average or 0.0, self.others_after or 0.0)
        return others > BUSY_SHARE * self.cores

    def after(self, threads: int | None) -> Machine:
        """Return this machine after a measurement that used some threads (`None`: every core)."""
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        own = self.cores if threads is None else min(threads, self.cores)
        others = None if load is None else max(0.0, load - own)
        return dataclasses.replace(self, others_after=others)


def this_machine(packages: Iterable[str]) -> Machine:
    """Describe this machine, with the versions of those packages that are installed."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    model = re.search(r"^model name\s*: (.+)", text, re.MULTILINE)
    names = getattr(os, "sysconf_names", {})  # none on Windows
    pages = os.sysconf("SC_PHYS_PAGES") if "SC_PHYS_PAGES" in names else None
    own = {"vit-export": __version__, "python": platform.python_version()}
    return Machine(
        processor=model[1] if model else platform.processor() or platform.machine(),
        cores=usable_cpus(),
        memory_bytes=pages and pages * os.sysconf("SC_PAGE_SIZE"),
        load_average=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        system=f"{platform.system()} {platform.machine()}",
        gpus=tuple(run_probe(probe_nvidia).get("gpus", ())),
        versions=own | installed_versions(packages),
    )


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    return {name: version for name in packages if (version := version_of(name))}

"""The quota of control groups and the affinity limit the number of CPUs."""

from __future__ import annotations

import os

import pytest

from vit_export.host.cpus import allowed_cpus, cpu_quota, usable_cpus


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function that makes files below a root, on a machine of 64 CPUs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)

    def make(cgroup: str, files: dict[str, str]):
        for name, text in {"proc/self/cgroup": cgroup, **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return make


V1 = "4:cpuset:/\n3:memory:/docker/ab\n2:cpu,cpuacct:/docker/ab\n1:name=systemd:/docker/ab\n"
MACHINES = [
    ("0::/\n", {"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2.0, 2),
    ("0::/\n", {"sys/fs/cgroup/cpu.max": "max 100000\n"}, None, 64),
    ("0::/\n", {"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5, 2),
    ("0::/\n", {"sys/fs/cgroup/cpu.max": "10000 100000\n"}, 0.1, 1),
    ("0::/\n", {"sys/fs/cgroup/cpu.max": "9900000 100000\n"}, 99.0, 64),
    # the group above is tighter; a limit above counts too
    ("0::/kube/pod/a\n", {"sys/fs/cgroup/kube/pod/a/cpu.max": "800000 100000\n",
                          "sys/fs/cgroup/kube/pod/cpu.max": "400000 100000\n",
                          "sys/fs/cgroup/kube/cpu.max": "max 100000\n"}, 4.0, 4),
    (V1, {"sys/fs/cgroup/cpu,cpuacct/docker/ab/cpu.cfs_quota_us": "300000\n",
          "sys/fs/cgroup/cpu,cpuacct/docker/ab/cpu.cfs_period_us": "100000\n"}, 3.0, 3),
    (V1, {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, None, 64),
    # a container sees the host's path, and its own group as the root
    (V1, {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 0.5, 1),
    (V1 + "0::/\n", {"sys/fs/cgroup/unified/cpu.max": "500000 100000\n"}, 5.0, 5),
    ("0::/\n", {"sys/fs/cgroup/cpu.max": "nonsense\n"}, None, 64),
    ("0::/\n", {}, None, 64),
]  # fmt: skip


@pytest.mark.parametrize(("cgroup", "files", "quota", "cpus"), MACHINES)
def test_the_quota_limits_the_cpus(machine, cgroup, files, quota, cpus):
    """Version 1 and 2 of control groups, as their files read."""
    root = machine(cgroup, files)
    assert cpu_quota(root) == quota
    assert usable_cpus(root) == cpus


def test_the_affinity_limits_the_cpus(machine, monkeypatch):
    """Of `taskset` or a cpuset; without Linux's call, all CPUs count."""
    root = machine("0::/\n", {"sys/fs/cgroup/cpu.max": "800000 100000\n"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 9, 40})
    assert (allowed_cpus(), usable_cpus(root)) == (3, 3)
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert (allowed_cpus(), usable_cpus(root)) == (12, 8)


def test_other_systems_have_no_quota(tmp_path):
    """No `/proc`."""
    assert cpu_quota(tmp_path) is None
    assert usable_cpus(tmp_path) == allowed_cpus()


def test_this_machine_has_cpus():
    """The real files are read."""
    assert 1 <= usable_cpus() <= (os.cpu_count() or 1)

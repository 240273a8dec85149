"""The quota of control groups and the affinity limit the number of CPUs."""

from __future__ import annotations

import functools
import os

import pytest
from control_groups import MACHINES, make_machine

from vit_export.host.cpus import allowed_cpus, cpu_quota, usable_cpus


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function that makes files below a root, on a machine of 64 CPUs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)

    return functools.partial(make_machine, tmp_path)


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

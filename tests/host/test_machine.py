"""The machine that a time was measured on."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest

from vit_export.host.machine import this_machine


def test_the_machine_is_named_with_the_versions_that_matter():
    """Packages that are not installed are left out."""
    machine = this_machine(["numpy", "no-such-package"])
    assert machine.versions["numpy"] == np.__version__
    assert {"vit-export", "python"} < set(machine.versions)
    assert "no-such-package" not in machine.versions
    assert machine.processor
    assert 1 <= machine.cores <= os.cpu_count()
    assert machine.memory_bytes > 1e9


def test_a_machine_with_a_load_at_the_start_is_busy():
    machine = dataclasses.replace(this_machine([]), cores=4)
    assert not dataclasses.replace(machine, load_average=2.0).busy
    assert dataclasses.replace(machine, load_average=2.1).busy
    assert not dataclasses.replace(machine, load_average=None).busy


def test_a_machine_with_a_load_at_the_end_is_busy(monkeypatch):
    """Less the threads of the measurement itself."""
    idle = dataclasses.replace(this_machine([]), cores=4, load_average=0.0)
    for load, threads, others in ((5.0, None, 1.0), (6.1, None, 2.1), (3.0, 1, 2.0), (3.2, 1, 2.2)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        found = idle.after(threads)
        assert found.others_after == pytest.approx(others)
        assert found.busy == (others > 2)
    monkeypatch.delattr(os, "getloadavg")
    assert idle.after(None).others_after is None

"""What a measured time depends on, named."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest

from vit_export.host.machine import this_machine


def test_the_machine_is_named_with_the_versions_that_matter():
    """A package that is not installed is left out."""
    machine = this_machine(["numpy", "no-such-package"])
    assert machine.versions["numpy"] == np.__version__
    assert {"vit-export", "python"} < set(machine.versions)
    assert "no-such-package" not in machine.versions
    assert machine.processor
    assert 1 <= machine.cores <= os.cpu_count()
    assert machine.memory_bytes > 1e9


def test_a_machine_that_others_use_is_busy():
    """By its load when it was looked at."""
    machine = dataclasses.replace(this_machine([]), cores=4)
    assert not dataclasses.replace(machine, load_average=2.0).busy
    assert dataclasses.replace(machine, load_average=2.1).busy
    assert not dataclasses.replace(machine, load_average=None).busy


def test_a_machine_that_others_begin_to_use_is_busy_too(monkeypatch):
    """By its load at the end, less what the measuring itself brought."""
    idle = dataclasses.replace(this_machine([]), cores=4, load_average=0.0)
    for load, threads, others in ((5.0, None, 1.0), (6.1, None, 2.1), (3.0, 1, 2.0), (3.2, 1, 2.2)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        found = idle.after(threads)
        assert found.others_after == pytest.approx(others)
        assert found.busy == (others > 2)
    monkeypatch.delattr(os, "getloadavg")
    assert idle.after(None).others_after is None

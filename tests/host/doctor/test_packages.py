"""Packages that the extras install, by whatever wheel."""

from __future__ import annotations

import pytest

from vit_export.host.doctor import packages
from vit_export.host.doctor.types import Fact, Fault, find


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """These are installed, and nothing else; names are spelt with underscores."""
    known = {name.replace("_", "-"): version for name, version in versions.items()}
    monkeypatch.setattr(packages, "version_of", lambda name: known.get(name, ""))


@pytest.mark.parametrize("wheel", ["tensorrt", "tensorrt_cu12", "tensorrt_cu13_bindings"])
def test_any_wheel_of_tensorrt_will_do(monkeypatch, wheel):
    """They bring one module; the package that the extra names only asks for another."""
    installed(monkeypatch, **{wheel: "10.13.3.9"})
    facts, faults = packages.check_packages(())
    assert find(facts, "package", "tensorrt") == Fact("package", "tensorrt", "10.13.3.9", True)
    assert not find(facts, "package", "tensorrt-rtx").usable
    assert faults == ()


def test_any_wheel_of_tensorrt_rtx_will_do(monkeypatch):
    """It is named after its CUDA as well."""
    installed(monkeypatch, tensorrt_rtx_cu13="1.7.1.116")
    facts, _ = packages.check_packages(())
    assert find(facts, "package", "tensorrt-rtx").usable
    assert not find(facts, "package", "tensorrt").usable


def test_the_tensorrt_of_jetpack_6_is_no_fault(monkeypatch):
    """10.3 is loaded, so it is not too old."""
    installed(monkeypatch, tensorrt="10.3.0")
    assert packages.check_packages(())[1] == ()


def test_a_wheel_that_is_too_old_is_upgraded_by_its_own_name(monkeypatch):
    """Another one would be laid over it."""
    installed(monkeypatch, tensorrt_cu12="10.2.0")
    facts, faults = packages.check_packages(())
    assert not find(facts, "package", "tensorrt").usable
    assert faults == (
        Fault(
            "tensorrt-cu12 10.2.0 is older than 10.3, the oldest that vit-export works with",
            "pip install --upgrade 'tensorrt-cu12>=10.3'",
        ),
    )

"""Who measures an engine, and where that is remembered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from vit_export import enginecheck
from vit_export.enginecheck import needs_check, open_engine, rebuild_engine, remember
from vit_export.enginefile import Gpu, Sidecar, sidecar_path
from vit_export.errors import EngineError, GateError

MakeSidecar = Callable[..., Sidecar]
L4 = Gpu(name="NVIDIA L4", compute_capability="8.9", driver="13.0")
OTHER = Gpu(name="NVIDIA L40S", compute_capability="8.9", driver="13.0")


def certified(sidecar: Sidecar, passed: bool) -> Sidecar:
    """The same engine, measured where it was built."""
    (hop,) = sidecar.manifest.certificate
    values = {**vars(hop), "passed": passed, "reason": "NaN"}
    manifest = sidecar.manifest.replace(certificate=(type(hop)(**values),))
    return sidecar.replace(manifest=manifest)


def test_an_engine_is_measured_once_per_gpu_and_plan(
    make_sidecar: MakeSidecar, tmp_path: Path
) -> None:
    """The sidecar remembers it, also for the next process."""
    engine, fresh = tmp_path / "x.engine", make_sidecar(checks=(), plan_sha256="11" * 32)
    assert needs_check(fresh, L4)
    remember(engine, fresh, L4)
    again = Sidecar.read(engine)
    assert [check.gpu for check in again.checks] == [L4]
    assert not needs_check(again, L4)
    assert needs_check(again, OTHER)
    assert needs_check(again.replace(plan_sha256="22" * 32), L4)


def test_where_the_sidecar_cannot_be_written_the_process_remembers(
    make_sidecar: MakeSidecar, tmp_path: Path
) -> None:
    """A folder that is not there takes no file, whoever the user is."""
    engine, fresh = tmp_path / "gone" / "x.engine", make_sidecar(checks=(), plan_sha256="33" * 32)
    remember(engine, fresh, L4)
    assert not sidecar_path(engine).exists()
    assert not needs_check(fresh, L4)
    assert needs_check(fresh, OTHER)


def test_an_engine_that_passed_where_it_was_built_is_not_measured_again(
    make_sidecar: MakeSidecar,
) -> None:
    """And one that failed is never run."""
    assert not needs_check(certified(make_sidecar(checks=()), passed=True), L4)
    with pytest.raises(GateError, match="failed its gate: NaN"):
        needs_check(certified(make_sidecar(checks=()), passed=False), L4)


def test_a_rebuild_that_fails_says_why(make_sidecar: MakeSidecar, tmp_path: Path) -> None:
    """With the command, run in another process; here its source is missing."""
    engine = tmp_path / "x.engine"
    make_sidecar().write(sidecar_path(engine))
    with pytest.raises(EngineError, match=r"cannot be rebuilt: .*my model.onnx: no such file"):
        rebuild_engine(engine)


@pytest.mark.parametrize("passed", [None, False])
def test_an_engine_that_is_refused_holds_nothing(
    make_sidecar: MakeSidecar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passed: bool | None
) -> None:
    """Whether it fails here or failed where it was built; the error may live on."""
    sidecar = make_sidecar(checks=(), plan_sha256="44" * 32)
    released: list[str] = []
    runner = SimpleNamespace(
        sidecar=sidecar if passed is None else certified(sidecar, passed),
        gpu=L4,
        release=lambda: released.append("released"),
    )

    def fail(_: object) -> None:
        raise GateError("NaN")

    monkeypatch.setattr(enginecheck, "TrtRunner", lambda path, **_: runner)
    monkeypatch.setattr(enginecheck, "measure", fail)
    with pytest.raises(GateError, match="NaN"):
        open_engine(tmp_path / "x.engine")
    assert released == ["released"]
    assert open_engine(tmp_path / "x.engine", check=False) is runner
    assert released == ["released"]

"""When an engine is measured, and where that is recorded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_cuda import FakeCuda

from vit_export.artifact.engine_sidecar import Check, Gpu, Sidecar, sidecar_path
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.errors import ArtifactError, EngineError, GateError
from vit_export.pipeline.export import ExportResult
from vit_export.runtime import engine_check
from vit_export.runtime.engine_check import needs_check, open_engine, rebuild_engine, remember

MakeSidecar = Callable[..., Sidecar]
L4 = Gpu(name="NVIDIA L4", compute_capability="8.9", driver="13.0")
OTHER = Gpu(name="NVIDIA L40S", compute_capability="8.9", driver="13.0")
VERSION = "11.4.0.106"  # of `make_sidecar`


def check(plan_sha256: str, gpu: Gpu = L4, version: str = VERSION) -> Check:
    """A check of an engine."""
    return Check(gpu=gpu, plan_sha256=plan_sha256, version=version)


def certified(sidecar: Sidecar, passed: bool) -> Sidecar:
    """Return the sidecar of an engine that was measured where it was built."""
    (stage,) = sidecar.manifest.certificate
    measured = stage.replace(passed=passed, reasons=("NaN",))
    return sidecar.replace(manifest=sidecar.manifest.replace(certificate=(measured,)))


def test_an_engine_is_measured_once_per_gpu_plan_and_version(
    make_sidecar: MakeSidecar, tmp_path: Path
) -> None:
    """The sidecar records it, also for the next process."""
    engine, plan, other = tmp_path / "x.engine", "11" * 32, "22" * 32
    fresh = make_sidecar(checks=(), plan_sha256=plan)
    fresh.write(sidecar_path(engine))
    assert needs_check(fresh, check(plan))
    remember(engine, check(plan))
    again = Sidecar.read(engine)
    assert again.checks == (check(plan),)
    assert not needs_check(again, check(plan))
    assert needs_check(again, check(plan, OTHER))
    assert needs_check(again, check(plan, version="11.5.0.1"))
    assert needs_check(again.replace(plan_sha256=other), check(other))


def test_without_write_access_the_process_remembers_the_check(
    make_sidecar: MakeSidecar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a device with a read-only disk."""

    def write(_sidecar: Sidecar, path: Path) -> None:
        raise OSError(30, "Read-only file system", str(path))

    engine, plan = tmp_path / "x.engine", "33" * 32
    fresh = make_sidecar(checks=(), plan_sha256=plan)
    fresh.write(sidecar_path(engine))
    monkeypatch.setattr(Sidecar, "write", write)
    remember(engine, check(plan))
    assert Sidecar.read(engine) == fresh
    assert not needs_check(fresh, check(plan))
    assert needs_check(fresh, check(plan, OTHER))


def test_what_other_processes_wrote_stays(make_sidecar: MakeSidecar, tmp_path: Path) -> None:
    """A check on another GPU, and the sidecar of a newer engine."""
    engine, plan, newer = tmp_path / "x.engine", "44" * 32, "55" * 32
    make_sidecar(checks=(check(plan, OTHER),), plan_sha256=plan).write(sidecar_path(engine))
    remember(engine, check(plan))
    assert Sidecar.read(engine).checks == (check(plan, OTHER), check(plan))
    replaced = make_sidecar(checks=(), plan_sha256=newer)
    replaced.write(sidecar_path(engine))
    remember(engine, check(plan))
    assert Sidecar.read(engine) == replaced


def test_an_engine_that_passed_is_not_measured_again_where_it_was_built(
    make_sidecar: MakeSidecar,
) -> None:
    """On another GPU or version it is; an engine that failed is never run."""
    plan = "66" * 32
    passed = certified(make_sidecar(checks=(), plan_sha256=plan), passed=True)
    assert not needs_check(passed, check(plan))
    assert needs_check(passed, check(plan, OTHER))
    assert needs_check(passed, check(plan, version="11.5.0.1"))
    with pytest.raises(GateError, match="failed its gate: NaN"):
        needs_check(certified(passed, passed=False), check(plan))


def test_a_failed_rebuild_has_the_reason_of_the_build(
    make_sidecar: MakeSidecar, tiny_export: ExportResult, tmp_path: Path
) -> None:
    """Here the .onnx file has no golden file."""
    engine, source = tmp_path / "x.engine", tmp_path / "my model.onnx"
    shutil.copy(tiny_export.path, source)
    sha256 = OnnxFile.read(source).graph_sha256()
    make_sidecar(source_sha256=sha256).write(sidecar_path(engine))
    with pytest.raises(EngineError, match=r"cannot be rebuilt: .*my model.golden.npz"):
        rebuild_engine(engine, 0)


def test_an_engine_is_not_rebuilt_as_another_model(
    make_sidecar: MakeSidecar, tiny_export: ExportResult, tmp_path: Path
) -> None:
    """Its .onnx file was exported again, or is missing."""
    engine = tmp_path / "x.engine"
    make_sidecar().write(sidecar_path(engine))
    with pytest.raises(ArtifactError, match=r"built from is missing .*my model.onnx"):
        rebuild_engine(engine, 0)
    shutil.copy(tiny_export.path, tmp_path / "my model.onnx")
    with pytest.raises(ArtifactError, match=r"is not the file that x.engine was built from"):
        rebuild_engine(engine, 0)


@pytest.mark.parametrize(
    ("device", "current", "flag"), [(1, 0, True), (None, 1, True), (0, 1, False)]
)
def test_an_engine_is_rebuilt_on_the_gpu_that_it_is_loaded_on(
    make_engine: Callable[..., Path],
    cuda: FakeCuda,
    monkeypatch: pytest.MonkeyPatch,
    device: int | None,
    current: int,
    flag: bool,
) -> None:
    """By default the GPU of the calling thread; the child process would take GPU 0."""
    engine, words = make_engine(version="10.0"), []

    def run_module(*arguments: str) -> SimpleNamespace:
        words.extend(arguments)
        make_engine()
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(engine_check, "run_module", run_module)
    monkeypatch.setattr(engine_check, "find_source", lambda path, sidecar: None)
    cuda.current = current
    runner = open_engine(engine, device=device, rebuild=True, trusted=True)
    assert runner.ordinal == (current if device is None else device)
    assert words[-2:] == (["--device", "1"] if flag else ["-o", str(engine)])
    assert cuda.current == current
    runner.release()


@pytest.mark.parametrize("passed", [None, False])
def test_an_engine_that_fails_its_check_is_released(
    make_sidecar: MakeSidecar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passed: bool | None
) -> None:
    """Whether it fails here or failed where it was built."""
    sidecar = make_sidecar(checks=(), plan_sha256="44" * 32)
    released: list[str] = []
    runner = SimpleNamespace(
        sidecar=sidecar if passed is None else certified(sidecar, passed),
        gpu=L4,
        provider="tensorrt",
        release=lambda: released.append("released"),
    )

    def fail(_: object) -> None:
        raise GateError("NaN")

    monkeypatch.setattr(engine_check, "TrtRunner", lambda path, **_: runner)
    monkeypatch.setattr(engine_check, "load_backend", lambda _: SimpleNamespace(version="11.4.0.2"))
    monkeypatch.setattr(engine_check, "measure", fail)
    with pytest.raises(GateError, match="NaN"):
        open_engine(tmp_path / "x.engine")
    assert released == ["released"]
    assert open_engine(tmp_path / "x.engine", trusted=True) is runner
    assert released == ["released"]

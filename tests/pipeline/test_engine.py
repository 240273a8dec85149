"""Whole engine builds with TensorRT-RTX, which needs no GPU."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fake_cuda import FakeCuda

from vit_export.artifact.engine_sidecar import (
    BatchRange,
    Gpu,
    Sidecar,
    file_sha256,
    read_plan_file,
    sidecar_path,
)
from vit_export.artifact.golden import Golden
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.read import read_manifest
from vit_export.cli.main import main
from vit_export.cli.report.results import engine_text
from vit_export.engine import build, proof
from vit_export.engine.settings import EngineSettings
from vit_export.errors import (
    ArtifactError,
    EngineError,
    GateError,
    OutputError,
    ProviderError,
    UsageError,
)
from vit_export.gate.validate import Comparison
from vit_export.pipeline import engine as engine_pipeline
from vit_export.pipeline import quantize as quantize_pipeline
from vit_export.pipeline.engine import build_engine, default_output, must_convert
from vit_export.pipeline.export import ExportResult
from vit_export.pipeline.quantize import quantize
from vit_export.quantization.settings import QuantizeSettings
from vit_export.runtime import engine_check, load, load_engine
from vit_export.runtime.tensorrt import cuda as device
from vit_export.runtime.tensorrt import plan
from vit_export.runtime.tensorrt import runner as trt
from vit_export.runtime.tensorrt.backend import load_backend

L4 = Gpu(name="NVIDIA L4", compute_capability="8.9", driver="13.0")
RTX = ("--backend", "tensorrt-rtx", "--compute-capability", "8.9")


def settings(**fields: object) -> EngineSettings:
    """Settings for TensorRT-RTX and an L4, with fields changed."""
    values = {"backend": "tensorrt-rtx", "compute_capabilities": ("8.9",), **fields}
    return EngineSettings(**values)  # type: ignore[arg-type]


def copy(folder: Path, target: Path, *names: str) -> None:
    """Copy files into another folder, where a test may change them."""
    for name in names:
        shutil.copy(folder / name, target)


@pytest.fixture(scope="module")
def folder(tiny_export: ExportResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, its FP16 artifact, and FP16 engines of both; tests must not change them."""
    folder = tmp_path_factory.mktemp("engines")
    shutil.copy(tiny_export.path, folder / "tiny.onnx")
    shutil.copy(tiny_export.golden, folder / "tiny.golden.npz")
    build_engine(folder / "tiny.onnx", settings=settings())
    quantize(folder / "tiny.onnx", settings=QuantizeSettings(precision="fp16"))
    (folder / "other").mkdir()
    build_engine(folder / "tiny.fp16.onnx", folder / "other/given.engine", settings=settings())
    return folder


def test_an_engine_has_a_sidecar_and_a_golden_file(folder: Path) -> None:
    """The sidecar has the manifest, and the version and GPU of the engine."""
    engine = folder / "tiny.fp16.engine"
    sidecar = Sidecar.read(engine)
    assert sidecar.plan_sha256 == file_sha256(engine)
    assert sidecar.plan_bytes == engine.stat().st_size
    assert (sidecar.backend, sidecar.compute_capabilities) == ("tensorrt-rtx", ("8.9",))
    assert sidecar.source_sha256 == OnnxFile.read(folder / "tiny.onnx").graph_sha256()
    assert sidecar.manifest.precision == "fp16"
    assert sidecar.manifest.labels[0] == "name 0"
    assert sidecar.manifest.toolchain["tensorrt-rtx"] == sidecar.version
    assert set(sidecar.proof["network"]) == {"HALF"}
    (profile,) = sidecar.profiles
    assert profile["pixel_values"].max == (32, 3, 32, 32)
    copied, original = (Golden.read(folder / f"tiny{tag}.golden.npz") for tag in (".fp16", ""))
    assert (copied.outputs["logits"] == original.outputs["logits"]).all()


def test_without_a_gpu_the_engine_is_unmeasured(folder: Path) -> None:
    """`passed` is null with the reason, after the measured stages."""
    *others, last = Sidecar.read(folder / "tiny.fp16.engine").manifest.certificate
    assert (last.name, last.passed, last.batches) == ("onnx -> tensorrt-rtx engine", None, ())
    assert "no GPU" in last.reason
    assert all(stage.passed for stage in others)
    assert any("fp16" in stage.name for stage in others)


def test_an_fp16_artifact_is_built_without_a_conversion(folder: Path) -> None:
    """It gives the same engine as the fp32 artifact."""
    given, made = folder / "other/given.engine", folder / "tiny.fp16.engine"
    assert given.read_bytes() == made.read_bytes()


def test_the_rebuild_command_of_a_sidecar_builds_the_same(folder: Path, tmp_path: Path) -> None:
    """Here with the GPU named, since this machine has none."""
    for name in ("tiny.onnx", "tiny.golden.npz", "tiny.fp16.engine.json"):
        shutil.copy(folder / name, tmp_path)
    engine = tmp_path / "tiny.fp16.engine"
    arguments = Sidecar.read(engine).rebuild_arguments(engine)
    done = CliRunner().invoke(main, [*arguments, "--compute-capability", "8.9"])
    assert done.exit_code == 0, done.output
    assert engine.read_bytes() == (folder / "tiny.fp16.engine").read_bytes()


@pytest.mark.parametrize(
    ("precision", "wanted", "complaint"),
    [
        ("fp16", "fp32", "tiny.onnx is fp16"),
        ("fp16", "bf16", "use --precision fp16, or the fp32 artifact"),
        ("int8-static", "fp16", "use --precision int8, or the fp32 artifact"),
        ("fp32", "int8", "vit-export quantize 'my tiny.onnx' --precision int8-static"),
    ],
)
def test_a_precision_that_the_artifact_cannot_have_is_refused(
    tiny_export: ExportResult, precision: str, wanted: str, complaint: str
) -> None:
    manifest = tiny_export.manifest.replace(precision=precision)
    with pytest.raises(UsageError, match=complaint):
        must_convert(manifest, settings(precision=wanted), Path("my tiny.onnx"))


def test_a_stripped_engine_needs_an_artifact_of_its_precision(tiny_export: ExportResult) -> None:
    """It reads its weights from that file later."""
    with pytest.raises(
        UsageError, match=r"--strip: .*\nhint: build from the result of: vit-export quantize"
    ):
        must_convert(tiny_export.manifest, settings(strip=True), Path("tiny.onnx"))
    narrow = tiny_export.manifest.replace(precision="fp16")
    assert not must_convert(narrow, settings(strip=True), Path("tiny.onnx"))


def test_default_names_follow_the_precision() -> None:
    assert default_output(Path("a/b16.onnx"), "fp16") == Path("a/b16.fp16.engine")
    assert default_output(Path("a/b16.fp16.onnx"), "fp16") == Path("a/b16.fp16.engine")
    assert default_output(Path("b16.int8-static.onnx"), "int8") == Path("b16.int8-static.engine")
    assert default_output(Path("b16.onnx"), "fp32") == Path("b16.engine")


def test_a_failed_build_leaves_the_old_engine(folder: Path, tmp_path: Path) -> None:
    """The message names the given file, though a converted one was built."""
    copy(folder, tmp_path, "tiny.onnx", "tiny.golden.npz")
    engine = tmp_path / "tiny.fp16.engine"
    engine.write_bytes(b"old")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(EngineError, match=r"cannot build tiny\.onnx: .*workspace"):
        build_engine(
            tmp_path / "tiny.onnx",
            settings=settings(workspace_mib=1, batches=(BatchRange(512, 512, 512),)),
        )
    assert engine.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_without_its_golden_file_no_engine_is_built(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "tiny.fp16.onnx", tmp_path)
    with pytest.raises(ArtifactError, match=r"there is no golden file tiny.fp16.golden.npz"):
        build_engine(tmp_path / "tiny.fp16.onnx", settings=settings())


def test_loading_an_engine_needs_the_gpu(folder: Path) -> None:
    """Also where it may be rebuilt or is trusted."""
    for extra in ({}, {"rebuild": True}, {"trusted": True}):
        with pytest.raises(ProviderError, match="there is no NVIDIA GPU here"):
            load_engine(folder / "tiny.fp16.engine", **extra)


def test_an_engine_runs_on_its_own_backend_only(folder: Path) -> None:
    with pytest.raises(ProviderError, match="only tensorrt-rtx runs this engine"):
        load(folder / "tiny.fp16.engine", provider="cpu")


def test_the_command_builds_for_two_gpus_and_ends_with_json(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "two gpus.plan"
    words = [str(folder / "tiny.fp16.onnx"), *RTX, "--compute-capability", "12.0", "--batch", "4"]
    done = CliRunner().invoke(main, ["engine", *words, "-o", str(output), "--json"])
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout.splitlines()[-1])
    assert data["path"] == str(output)
    assert data["passed"] is None
    assert data["sidecar"]["compute_capabilities"] == ["8.9", "12.0"]
    assert sorted(map(Path, data["files"])) == sorted(
        [output, sidecar_path(output), tmp_path / "two gpus.golden.npz"]
    )
    assert re.search(
        r"two gpus\.plan  [\d.]+ \w+  [\d.]+ s  tensorrt-rtx [\d.]+ for 8\.9, 12\.0  "
        r"layers \d+ HALF  not measured: built for .* no GPU",
        done.stderr,
    )
    assert f"next: vit-export predict '{output}' PHOTO.jpg" in done.stderr
    assert CliRunner().invoke(main, ["inspect", str(output)]).exit_code == 0
    assert read_manifest(output).precision == "fp16"


def test_inspect_shows_the_sidecar_without_a_gpu(folder: Path) -> None:
    done = CliRunner().invoke(main, ["inspect", str(folder / "tiny.fp16.engine")])
    assert done.exit_code == 0, done.output
    for words in ("compute capability 8.9", "HALF", "not measured", "1x3x32x32 to 32x3x32x32"):
        assert words in done.output


def test_validate_and_predict_need_the_gpu(folder: Path, photographs: list[Path]) -> None:
    engine = str(folder / "tiny.fp16.engine")
    for words in (["validate", engine], ["predict", engine, str(photographs[0])]):
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 1
        assert "there is no NVIDIA GPU here" in done.stderr
        assert "Traceback" not in done.output


def test_print_trtexec_builds_nothing(folder: Path, tmp_path: Path) -> None:
    """It also prints the command that converts the artifact."""
    source = str(shutil.copy(folder / "tiny.onnx", tmp_path / "my tiny.onnx"))
    done = CliRunner().invoke(main, ["engine", source, "--print-trtexec", "10.16"])
    assert done.exit_code == 0, done.output
    convert, line = done.output.splitlines()
    assert convert.startswith(f"vit-export quantize '{source}' --precision fp16")
    assert line.startswith("trtexec '--onnx=")
    assert "--stronglyTyped" in line
    assert [path.name for path in tmp_path.iterdir()] == ["my tiny.onnx"]
    done = CliRunner().invoke(main, ["engine", source, "--print-trtexec"])
    assert done.exit_code == 1
    assert "tensorrt is not installed" in done.stderr


def test_wrong_options_have_exit_status_2(folder: Path) -> None:
    source = str(folder / "tiny.onnx")
    for words in (["--backend", "trt"], ["--batch", "8:1:1"], ["--precision", "fp8"], [*RTX[:2]],
                  ["--print-trtexec", "11.4", "--compute-capability", "12.0"]):  # fmt: skip
        done = CliRunner().invoke(main, ["engine", source, *words])
        assert done.exit_code == 2, done.output


def another_model(folder: Path, name: str) -> dict[str, bytes]:
    """Write an artifact and its golden file, with any content."""
    files = {f"{name}.onnx": b"another", f"{name}.golden.npz": b"its golden file"}
    for file, content in files.items():
        (folder / file).write_bytes(content)
    return files


def test_the_golden_file_of_another_model_is_not_replaced(folder: Path, tmp_path: Path) -> None:
    """An engine and an .onnx file of one stem share a golden file."""
    files = another_model(tmp_path, "b")
    with pytest.raises(OutputError, match=r"replace b\.golden\.npz, which b\.onnx is measured"):
        build_engine(folder / "tiny.fp16.onnx", tmp_path / "b.engine", settings=settings())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_a_source_that_was_changed_after_its_gate_is_refused(
    tiny_export: ExportResult, tmp_path: Path
) -> None:
    """Its certificate, which the engine would have too, is that of other weights."""
    source = tmp_path / "tiny.onnx"
    shutil.copy(tiny_export.golden, tmp_path)
    content = bytearray(tiny_export.path.read_bytes())
    head = next(t for t in OnnxFile.read(tiny_export.path).initializers if t.name == "head.bias")
    content[head.offset : head.offset + head.nbytes] = bytes(head.nbytes)
    source.write_bytes(content)
    for attempt in (
        lambda: build_engine(source, settings=settings()),
        lambda: quantize(source, settings=QuantizeSettings(precision="fp16")),
    ):
        with pytest.raises(ArtifactError, match=r"tiny\.onnx: .*changed after"):
            attempt()


def test_an_engine_in_another_folder_has_the_relative_path_of_its_source(folder: Path) -> None:
    engine = folder / "other/given.engine"
    sidecar = Sidecar.read(engine)
    assert Path(sidecar.rebuild_arguments(engine)[1]).samefile(folder / "tiny.fp16.onnx")
    assert not Path(sidecar.source).is_absolute()


class _Trt:
    """TensorRT-RTX with a runtime that loads any plan."""

    class Runtime:
        """Loads any plan without a GPU."""

        def __init__(self, _logger: Any) -> None:
            pass

        def deserialize_cuda_engine(self, _plan: bytes) -> object:
            return object()

    def __getattr__(self, name: str) -> Any:
        return getattr(load_backend("tensorrt-rtx").trt, name)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Two fake GPUs."""
    fake = FakeCuda()
    fake.replace_cuda_core(monkeypatch)
    return fake


@pytest.fixture
def on_an_l4(
    monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda
) -> Iterator[Callable[[Callable[[], Any]], None]]:
    """Two L4 with a fake TensorRT runtime; checks that every opened engine is released.

    Returns:
        A function that sets a replacement for the gate.
    """
    backend = dataclasses.replace(load_backend("tensorrt-rtx"), trt=_Trt())
    for module in (device, trt):
        monkeypatch.setattr(module, "current_gpu", lambda ordinal=None: L4)
    monkeypatch.setattr(trt, "load_backend", lambda name: backend)
    open_engine, opened, released = trt.TrtRunner.__init__, [], []

    def opening(runner: trt.TrtRunner, *args: Any, **kwargs: Any) -> None:
        open_engine(runner, *args, **kwargs)
        opened.append(runner)

    monkeypatch.setattr(trt.TrtRunner, "__init__", opening)
    monkeypatch.setattr(trt.TrtRunner, "release", lambda runner: released.append(runner))
    monkeypatch.setattr(plan.Plan, "_check_signature", lambda self, path: None)
    monkeypatch.setattr(engine_pipeline, "inspect_engine", lambda *_: "")
    yield lambda gate: monkeypatch.setattr(engine_check, "compare", lambda *_, **__: gate())
    assert opened
    assert released == opened


def measured(sidecar: Sidecar, **changes: Any) -> Comparison:
    """Return the result of a gate on an engine."""
    return Comparison(stage=sidecar.measured.replace(**changes))


def test_a_stripped_engine_is_measured_with_the_weights_of_its_source(
    folder: Path,
    tmp_path: Path,
    on_an_l4: Callable[[Callable[[], Any]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the temporary folder of the build, and in its final folder."""
    config, refitted = build._config, []

    def plain(backend: Any, network: Any, stripped: EngineSettings, *others: Any) -> Any:
        return config(backend, network, dataclasses.replace(stripped, strip=False), *others)

    monkeypatch.setattr(build, "_config", plain)  # stripping needs a real GPU
    monkeypatch.setattr(
        plan, "_refit", lambda backend, engine, source, messages: refitted.append(source)
    )
    found = measured(Sidecar.read(folder / "tiny.fp16.engine"), passed=True, reasons=())
    on_an_l4(lambda: found)
    engine = tmp_path / "x.engine"
    stripped = settings(strip=True, compute_capabilities=())
    made = build_engine(folder / "tiny.fp16.onnx", engine, settings=stripped)
    assert made.sidecar.measured.passed
    assert made.sidecar == Sidecar.read(engine)
    (source,) = refitted
    assert source.name == "tiny.fp16.onnx"
    assert made.sidecar.source_path(engine).samefile(folder / "tiny.fp16.onnx")


@pytest.mark.parametrize("device", [1, None])
def test_an_engine_is_built_and_measured_on_the_gpu_of_its_settings_or_of_the_caller(
    folder: Path,
    tmp_path: Path,
    cuda: FakeCuda,
    on_an_l4: Callable[[Callable[[], Any]], None],
    device: int | None,
) -> None:
    """TensorRT-RTX builds, on fake GPUs, of which the second is used."""
    used: set[tuple[str, int]] = set()

    def progress(stage: str, done: int = 0, total: int = 0) -> None:
        used.add((threading.current_thread().name.partition("_")[0], cuda.current))

    def gate() -> Comparison:
        used.add(("gate", cuda.current))
        return measured(Sidecar.read(folder / "tiny.fp16.engine"), passed=True, reasons=())

    on_an_l4(gate)
    cuda.current = 1 if device is None else 0
    made = build_engine(
        folder / "tiny.fp16.onnx",
        tmp_path / "x.engine",
        settings=settings(device=device, compute_capabilities=()),
        progress=progress,
    )
    assert used == {("MainThread", 1), ("build", 1), ("gate", 1)}
    assert made.sidecar.device == 1
    assert "--device" not in made.sidecar.rebuild
    assert cuda.context == (1 if device is None else 0)


def test_an_inspector_that_shows_no_types_leads_to_a_warning(
    folder: Path, tmp_path: Path, on_an_l4: Callable[[Callable[[], Any]], None]
) -> None:
    """Not to an error: no GPU has shown yet what it shows of such an engine."""
    error = {"max_abs": 0.001, "tolerance": 0.002}
    unmeasured = Sidecar.read(folder / "tiny.fp16.engine")
    found = measured(unmeasured, passed=True, reasons=(), reason="", **error)
    on_an_l4(lambda: found)
    engine = tmp_path / "x.engine"
    made = build_engine(
        folder / "tiny.fp16.onnx", engine, settings=settings(compute_capabilities=())
    )
    (warning,) = made.warnings
    assert "inspector shows no fp16 in the engine: no types at all" in warning
    written = Sidecar.read(engine).proof
    assert (written["engine"], written["warnings"]) == ("not shown", [warning])
    text = engine_text(made)
    assert f"warning: {warning}\n{engine}  " in text
    (line,) = [line for line in text.splitlines() if line.startswith(f"{engine}  ")]
    assert line.endswith(" HALF  passed  max|y - y64| 0.001 (tolerance 0.002)")


def test_a_plan_that_is_larger_than_expected_leads_to_a_warning(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit was measured on engines of TensorRT-RTX only."""
    monkeypatch.setattr(proof, "CODE_BYTES", 0)
    engine = tmp_path / "x.engine"
    words = ["engine", str(folder / "tiny.fp16.onnx"), *RTX, "-o", str(engine)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    (warning,) = Sidecar.read(engine).proof["warnings"]
    assert "it may be an fp32 engine" in warning
    assert f"warning: {warning}" in done.output
    shown = CliRunner().invoke(main, ["inspect", str(engine)])
    assert warning in " ".join(shown.output.split())


@pytest.mark.parametrize("finished", [0, 1, 2, 3])
def test_a_build_that_is_killed_while_it_moves_its_files_leaves_a_pair_or_a_clear_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: int
) -> None:
    """Old and new engine are whole, or a load says how to build again."""
    for name in ("x.engine", "x.engine.json"):
        shutil.copy(folder / name.replace("x", "tiny.fp16"), tmp_path / name)
    (tmp_path / "x.golden.npz").write_bytes(b"that of the old engine")
    old = Sidecar.read(tmp_path / "x.engine")
    replace, moved = os.replace, []

    def killed(source: Path, target: Path) -> None:
        if Path(target).parent == tmp_path:
            if len(moved) == finished:
                raise KeyboardInterrupt  # also where `publish` restores the old files
            moved.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt) if finished < 3 else contextlib.nullcontext():
        build_engine(
            folder / "tiny.fp16.onnx",
            tmp_path / "x.engine",
            settings=settings(batches=(BatchRange(1, 1, 2),)),
        )
    assert moved == ["x.engine.json", "x.golden.npz", "x.engine"][:finished]
    sidecar = Sidecar.read(tmp_path / "x.engine")
    if finished in (0, 3):
        read_plan_file(tmp_path / "x.engine", sidecar)
        assert (sidecar == old) == (finished == 0)
    else:
        with pytest.raises(ArtifactError, match=r"x\.engine: .*\nhint: .*vit-export engine .*onnx"):
            read_plan_file(tmp_path / "x.engine", sidecar)


def test_an_engine_that_fails_its_gate_is_released_and_not_written(
    folder: Path, tmp_path: Path, on_an_l4: Callable[[Callable[[], Any]], None]
) -> None:
    """Also when the gate itself fails."""

    def crash() -> Comparison:
        raise ProviderError("CUDA: out of memory")

    found = measured(Sidecar.read(folder / "tiny.fp16.engine"), passed=False, reasons=("NaN",))
    for_this_gpu = settings(compute_capabilities=())
    for gate, error in ((lambda: found, GateError), (crash, ProviderError)):
        on_an_l4(gate)
        with pytest.raises(error, match=r"NaN|out of memory"):
            build_engine(folder / "tiny.fp16.onnx", tmp_path / "x.engine", settings=for_this_gpu)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"refit": True}, "there is none here"),
        ({"precision": "bf16", "compute_capabilities": ("7.5",)}, "7.5 has no bfloat16"),
        ({"compute_capabilities": ("9.0",)}, "compiles for"),
        ({"device": 1}, "device 1: there is no NVIDIA GPU here"),
    ],
)
def test_impossible_settings_are_refused_before_the_conversion(
    folder: Path,
    tmp_path: Path,
    fields: dict[str, Any],
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The conversion of a large model takes minutes."""
    monkeypatch.setattr(
        quantize_pipeline, "quantize", lambda *_, **__: pytest.fail("it was converted")
    )
    with pytest.raises((EngineError, UsageError), match=complaint):
        build_engine(folder / "tiny.onnx", tmp_path / "x.engine", settings=settings(**fields))


def test_an_output_that_cannot_be_written_is_refused_before_the_build(
    folder: Path, tmp_path: Path
) -> None:
    engine, source = tmp_path / "x.engine", folder / "tiny.fp16.onnx"
    for name in ("x.engine.json", "x.golden.npz"):
        (tmp_path / name).mkdir()
        with pytest.raises(OutputError, match=rf"{name}: it is a folder"):
            build_engine(source, engine, settings=settings())
        (tmp_path / name).rmdir()
    with pytest.raises(ArtifactError, match="is a folder"):
        build_engine(".", settings=settings())


def test_an_error_of_the_progress_callback_is_raised(folder: Path, tmp_path: Path) -> None:
    """TensorRT itself reports it as a cancellation."""

    def progress(stage: str, done: int = 0, total: int = 0) -> None:
        if total:
            raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        build_engine(
            folder / "tiny.fp16.onnx", tmp_path / "x.engine", settings=settings(), progress=progress
        )
    assert list(tmp_path.iterdir()) == []

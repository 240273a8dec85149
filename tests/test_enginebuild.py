"""An artifact to an engine, whole, with TensorRT-RTX and without a GPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from vit_export.cli import main
from vit_export.engine.options import BuildOptions
from vit_export.enginebuild import default_output, make_engine, must_convert
from vit_export.enginefile import Ends, Sidecar, file_sha256, sidecar_path
from vit_export.errors import ArtifactError, EngineError, ProviderError, UsageError
from vit_export.golden import Golden
from vit_export.onnxfile import OnnxFile
from vit_export.pipeline import ExportResult
from vit_export.quantization import QuantizeSettings, quantize
from vit_export.runtime import load

RTX = ("--backend", "tensorrt-rtx", "--compute-capability", "8.9")


def options(**fields: object) -> BuildOptions:
    """For TensorRT-RTX and an L4 unless said otherwise."""
    asked = {"backend": "tensorrt-rtx", "compute_capabilities": ("8.9",), **fields}
    return BuildOptions(**asked)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tiny_export: ExportResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, its FP16 artifact, and FP16 engines of both; tests must not change them."""
    folder = tmp_path_factory.mktemp("engines")
    shutil.copy(tiny_export.path, folder / "tiny.onnx")
    shutil.copy(tiny_export.golden, folder / "tiny.golden.npz")
    make_engine(folder / "tiny.onnx", options=options())
    quantize(folder / "tiny.onnx", settings=QuantizeSettings(precision="fp16"))
    make_engine(folder / "tiny.fp16.onnx", folder / "given.engine", options=options())
    return folder


def test_an_engine_carries_manifest_golden_file_and_what_it_is_tied_to(folder: Path) -> None:
    """In its sidecar and beside it."""
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


def test_where_nobody_can_run_it_the_certificate_says_so(folder: Path) -> None:
    """`passed` is null, with the reason, after the hops that were measured."""
    *others, last = Sidecar.read(folder / "tiny.fp16.engine").manifest.certificate
    assert (last.hop, last.passed, last.batches) == ("onnx -> tensorrt-rtx engine", None, ())
    assert "no GPU" in last.reason
    assert all(hop.passed for hop in others)
    assert any("fp16" in hop.hop for hop in others)


def test_an_artifact_that_is_fp16_already_is_taken_as_it_is(folder: Path) -> None:
    """The same engine as from the fp32 one, whose conversion is the same."""
    given, made = folder / "given.engine", folder / "tiny.fp16.engine"
    assert given.read_bytes() == made.read_bytes()
    assert Sidecar.read(given).source == "tiny.fp16.onnx"


def test_the_rebuild_command_of_a_sidecar_builds_the_same(folder: Path, tmp_path: Path) -> None:
    """As it is written, with the GPU that is not here named by hand."""
    for name in ("tiny.onnx", "tiny.golden.npz", "tiny.fp16.engine.json"):
        shutil.copy(folder / name, tmp_path)
    engine = tmp_path / "tiny.fp16.engine"
    arguments = Sidecar.read(engine).rebuild_arguments(engine)
    done = CliRunner().invoke(main, [*arguments, "--compute-capability", "8.9"])
    assert done.exit_code == 0, done.output
    assert engine.read_bytes() == (folder / "tiny.fp16.engine").read_bytes()


@pytest.mark.parametrize(
    ("precision", "asked", "complaint"),
    [
        ("fp16", "fp32", "tiny.onnx is fp16"),
        ("fp16", "bf16", "--precision fp16, or the fp32 artifact"),
        ("int8", "int8", "what stands in its graph"),
        ("fp32", "int8", "vit-export quantize tiny.onnx --precision int8-static"),
    ],
)
def test_another_precision_than_the_artifacts_is_refused(
    tiny_export: ExportResult, precision: str, asked: str, complaint: str
) -> None:
    """Unless it can be made of it."""
    manifest = tiny_export.manifest.replace(precision=precision)
    with pytest.raises(UsageError, match=complaint):
        must_convert(manifest, options(precision=asked), Path("tiny.onnx"))


def test_only_a_graph_that_stays_can_be_stripped(tiny_export: ExportResult) -> None:
    """A graph that is made on the way is gone when the engine looks for its weights."""
    with pytest.raises(UsageError, match=r"--strip: .* make that first"):
        must_convert(tiny_export.manifest, options(strip=True), Path("tiny.onnx"))
    narrow = tiny_export.manifest.replace(precision="fp16")
    assert not must_convert(narrow, options(strip=True), Path("tiny.onnx"))


def test_names_follow_the_precision() -> None:
    """As those of quantized artifacts do."""
    assert default_output(Path("a/b16.onnx"), "fp16") == Path("a/b16.fp16.engine")
    assert default_output(Path("a/b16.fp16.onnx"), "fp16") == Path("a/b16.fp16.engine")
    assert default_output(Path("b16.int8-static.onnx"), "int8") == Path("b16.int8-static.engine")
    assert default_output(Path("b16.onnx"), "fp32") == Path("b16.engine")


def test_a_failed_build_leaves_the_old_engine(folder: Path, tmp_path: Path) -> None:
    """And nothing half-written beside it."""
    for name in ("tiny.fp16.onnx", "tiny.fp16.golden.npz"):
        shutil.copy(folder / name, tmp_path)
    engine = tmp_path / "tiny.fp16.engine"
    engine.write_bytes(b"old")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(EngineError, match="workspace"):
        make_engine(
            tmp_path / "tiny.fp16.onnx",
            options=options(workspace_mib=1, batches=(Ends(512, 512, 512),)),
        )
    assert engine.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_without_its_golden_file_no_engine_is_built(folder: Path, tmp_path: Path) -> None:
    """Nobody could measure it on the device."""
    shutil.copy(folder / "tiny.fp16.onnx", tmp_path)
    with pytest.raises(ArtifactError, match=r"there is no golden file tiny.fp16.golden.npz"):
        make_engine(tmp_path / "tiny.fp16.onnx", options=options())


def test_loading_an_engine_without_a_gpu_says_so_in_one_line(folder: Path) -> None:
    """Also where it may be rebuilt or is trusted."""
    for extra in ({}, {"rebuild": True}, {"trusted": True}):
        with pytest.raises(ProviderError, match="there is no NVIDIA GPU here") as refusal:
            load(folder / "tiny.fp16.engine", **extra)
        assert "\n" not in str(refusal.value)


def test_an_engine_runs_on_its_own_backend_only(folder: Path) -> None:
    """`--provider cpu` is not what would run it."""
    with pytest.raises(
        ProviderError, match="is an engine of tensorrt-rtx, which nothing else runs"
    ):
        load(folder / "tiny.fp16.engine", provider="cpu")


def test_the_command_builds_for_two_gpus_and_ends_with_json(folder: Path, tmp_path: Path) -> None:
    """One real run."""
    output = tmp_path / "two.engine"
    words = [str(folder / "tiny.fp16.onnx"), *RTX, "--compute-capability", "12.0", "--batch", "4"]
    done = CliRunner().invoke(main, ["engine", *words, "-o", str(output), "--json"])
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout.splitlines()[-1])
    assert data["path"] == str(output)
    assert data["passed"] is None
    assert data["sidecar"]["compute_capabilities"] == ["8.9", "12.0"]
    assert sorted(map(Path, data["files"])) == sorted(
        [output, sidecar_path(output), tmp_path / "two.golden.npz"]
    )


def test_inspect_shows_what_an_engine_is_without_a_gpu(folder: Path) -> None:
    """From its sidecar."""
    done = CliRunner().invoke(main, ["inspect", str(folder / "tiny.fp16.engine")])
    assert done.exit_code == 0, done.output
    for words in ("compute capability 8.9", "HALF", "not measured", "1x3x32x32 to 32x3x32x32"):
        assert words in done.output


def test_validate_and_predict_need_the_gpu(folder: Path, photographs: list[Path]) -> None:
    """One line, exit status 1."""
    engine = str(folder / "tiny.fp16.engine")
    for words in (["validate", engine], ["predict", engine, str(photographs[0])]):
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 1
        assert "there is no NVIDIA GPU here" in done.stderr
        assert "Traceback" not in done.output


def test_the_command_prints_trtexecs_line_and_builds_nothing(folder: Path, tmp_path: Path) -> None:
    """After the command that makes the graph that it needs."""
    shutil.copy(folder / "tiny.onnx", tmp_path)
    source = str(tmp_path / "tiny.onnx")
    done = CliRunner().invoke(main, ["engine", source, "--print-trtexec", "10.16"])
    assert done.exit_code == 0, done.output
    convert, line = done.output.splitlines()
    assert convert.startswith(f"vit-export quantize {source} --precision fp16")
    assert line.startswith("trtexec --onnx=")
    assert "--stronglyTyped" in line
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.onnx"]
    done = CliRunner().invoke(main, ["engine", source, "--print-trtexec"])
    assert done.exit_code == 1
    assert "tensorrt is not installed" in done.stderr


def test_a_wrong_word_is_wrong_usage(folder: Path) -> None:
    """Exit status 2, before anything heavy is loaded."""
    source = str(folder / "tiny.onnx")
    for words in (["--backend", "trt"], ["--batch", "8:1:1"], ["--precision", "fp8"], [*RTX[:2]]):
        done = CliRunner().invoke(main, ["engine", source, *words])
        assert done.exit_code == 2, done.output

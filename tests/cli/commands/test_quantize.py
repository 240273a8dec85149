"""`vit-export quantize`, `onnx --precision` and `validate --trace`, once for real each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper
from PIL import Image

from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.onnx_writer import stamp
from vit_export.cli.main import main
from vit_export.pipeline.export import ExportResult


def call(*arguments: str | Path) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def last_json(result: Result) -> dict:
    """The last line of standard output."""
    return json.loads(result.stdout.splitlines()[-1])


def is_picture(path: Path) -> bool:
    """Whether a PNG of some size lies there that is not one colour."""
    with Image.open(path) as picture:
        return picture.format == "PNG" and picture.width > 500 and len(picture.getcolors(9999)) > 2


def export_with_large_residual(made: ExportResult, folder: Path) -> Path:
    """The tiny artifact with one value of its position embedding at 4e4."""
    path = folder / "large.onnx"
    model = onnx.load(made.path)
    tensor = next(t for t in model.graph.initializer if list(t.dims) == [1, 17, 32])
    values = numpy_helper.to_array(tensor).copy()
    values[0, 3, 4] = 4e4
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)
    stamp(path, made.manifest.replace(graph_sha256=OnnxFile.read(path).graph_sha256()).metadata())
    shutil.copy(made.golden, path.with_suffix(".golden.npz"))
    return path


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_quantize_writes_a_file_a_table_and_a_picture(tiny_export, tmp_path, precision):
    """With --explain: what every block does, beside the certificate."""
    output = tmp_path / f"tiny.{precision}.onnx"
    arguments = ("quantize", tiny_export.path, "--precision", precision, "--explain", "-o", output)
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    data = last_json(result)
    assert data["passed"] is True
    assert data["accuracy"] == "unmeasured"
    assert "accuracy: unmeasured" in result.stderr
    assert [row["unit"] for row in data["blocks"]][-1] == "head"
    assert "only this block in" in result.stderr
    assert is_picture(Path(data["picture"]))
    assert OnnxFile.read(output).manifest.precision == precision
    assert data["manifest"]["certificate"][-1]["hop"] == f"fp32 -> {precision}"


def test_static_int8_leaves_its_ranges_beside_the_file(tiny_export, tmp_path, photographs):
    """From a folder of pictures, through the artifact's own preparation."""
    output = tmp_path / "tiny.onnx"
    result = call(
        *("quantize", tiny_export.path, "--precision", "int8-static", "-o", output),
        *("--calibration", photographs[0].parent, "--smooth", "0.5", "--json"),
    )
    assert result.exit_code == 0, result.output
    data = last_json(result)
    names = {"tiny.onnx", "tiny.golden.npz", "tiny.ranges.npz"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert {Path(path).name for path in data["files"]} == names
    done = data["manifest"]["conversion"]
    assert done["calibration"] == "2 of 2 images of images, percentile 99.99"
    assert done["notes"] == ["SmoothQuant with alpha 0.5 after 6 LayerNormalizations"]
    assert done["planned"] == 14
    assert done["narrowed"] == 14 - len(done["kept"])  # two pictures show few ranges


def test_onnx_makes_a_narrow_file_under_its_own_name(tmp_path, monkeypatch):
    """`<variant>.int8.onnx`; the fp32 file is measured on the way, and not kept."""
    monkeypatch.chdir(tmp_path)
    small = ("--set", "depth=1", "--set", "embed_dim=32", "--set", "num_heads=2")
    result = call("onnx", "--variant", "mnist", *small, "--precision", "int8", "--json")
    assert result.exit_code == 0, result.output
    data = last_json(result)
    assert data["path"] == "vit_mnist_28.int8.onnx"
    assert data["manifest"]["precision"] == "int8"
    stages = [stage["hop"] for stage in data["manifest"]["certificate"]]
    assert stages == ["torch -> onnx", "onnx -> simplified", "fp32 -> int8"]
    expected = {"vit_mnist_28.int8.onnx", "vit_mnist_28.int8.golden.npz"}
    assert {path.name for path in tmp_path.iterdir()} == expected


def test_options_of_a_conversion_need_one(tmp_path):
    """fp32 has no recipe."""
    result = call("onnx", "--variant", "mnist", "--fp16-recipe", "all", "-o", tmp_path / "m.onnx")
    assert result.exit_code == 2
    assert "--fp16-recipe is for a narrower --precision than fp32" in result.stderr


@pytest.mark.parametrize("narrow", [False, True])
def test_validate_traces_every_block(tiny_export, tmp_path, narrow):
    """As table and picture, of an artifact that passes too; INT8 by angle and share."""
    artifact = tiny_export.path
    if narrow:
        artifact = tmp_path / "tiny.int8.onnx"
        done = call("quantize", tiny_export.path, "--precision", "int8", "-o", artifact)
        assert done.exit_code == 0, done.output
    plot = tmp_path / "trace.png"
    result = call("validate", artifact, "--trace", "--plot", plot, "--json")
    assert result.exit_code == 0, result.output
    blocks = last_json(result)["blocks"]
    assert [block["name"] for block in blocks] == ["blocks.0", "blocks.1", "blocks.2"]
    assert all(block["accepted"] and block["max_abs"] > 0 for block in blocks)
    assert all((block["tolerance"] is None) == narrow for block in blocks)
    assert "share of max|y64|" in result.stderr
    assert is_picture(plot)
    assert f"picture: {plot}" in result.stderr


@pytest.mark.parametrize(
    ("status", "name", "words"),
    [
        (2, "trace.bmp", "must end in .png"),
        (2, "trace", "must end in .png"),
        (1, "none/trace.png", "no folder"),
    ],
)
def test_a_picture_that_cannot_be_made_is_refused_before_measuring(
    tiny_export, tmp_path, monkeypatch, status, name, words
):
    """By its ending, or its place."""
    monkeypatch.chdir(tmp_path)
    result = call("validate", tiny_export.path, "--plot", name, "--json")
    assert result.exit_code == status, result.output
    assert words in last_json(result)["error"]
    assert "measure" not in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "status"), [(["--trace", "--plot", "out.png"], 1), (["--trace"], 0)]
)
def test_a_picture_that_was_asked_for_by_name_and_failed_is_a_failure(
    tiny_export, tmp_path, monkeypatch, arguments, status
):
    """The table and the verdict stay; one that only comes along is a line."""
    monkeypatch.chdir(tmp_path)
    artifact = shutil.copy(tiny_export.path, tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", refuse)
    result = call("validate", artifact, "--golden", tiny_export.golden, *arguments, "--json")
    assert result.exit_code == status, result.output
    data = last_json(result)
    assert data["passed"] is True
    assert data["picture"] is None
    assert len(data["blocks"]) == 3
    assert ("No space left" in data.get("error", "")) == bool(status)
    assert "no picture: cannot write" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.onnx"]


def test_a_conversion_that_fails_leaves_nothing_and_exits_with_1(tiny_export, tmp_path):
    """A residual stream that float16 cannot hold: no file, and the reason in JSON too."""
    large = export_with_large_residual(tiny_export, tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    result = call("quantize", large, "--precision", "fp16", "--fp16-recipe", "all", "--json")
    assert result.exit_code == 1
    assert "puts the residual stream into fp16" in last_json(result)["error"]
    assert {path.name for path in tmp_path.iterdir()} == before


def test_an_unknown_precision_lists_the_known_ones(tiny_export):
    """Wrong usage, before anything is read."""
    result = call("quantize", tiny_export.path, "--precision", "int4")
    assert result.exit_code == 2
    assert "int8-static" in result.stderr

"""Every command run once, and an error message for every wrong usage."""

from __future__ import annotations

import ast
import json
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper
from PIL import Image

from vit_export.cli.main import main
from vit_export.variants import VARIANTS

ROOT = Path(__file__).parents[2]
MNIST = ("--set", "depth=1", "--set", "embed_dim=32", "--set", "num_heads=2")


def call(*arguments: str | Path) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def last_json(result: Result) -> dict:
    """The last line of standard output."""
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """An ONNX file of another tool: the mean of each channel."""
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)],
        "foreign",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path = tmp_path / "foreign.onnx"
    onnx.save(model, path)
    return path


def test_onnx_writes_a_measured_file_with_everything_that_was_given(tmp_path, monkeypatch):
    """Without -o the file is named after the variant; standard output is JSON alone."""
    monkeypatch.chdir(tmp_path)
    labels = json.dumps({str(i): f"digit {i}" for i in range(10)})
    (tmp_path / "labels.json").write_text(labels)
    result = call("onnx", "--variant", "mnist", *MNIST, "--labels", "labels.json", "--mean", "0.5",
                  "--std", "0.25", "--crop-pct", "0.8", "--interpolation", "bilinear",
                  "--activation", "sigmoid", "--json")  # fmt: skip
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["path"] == "vit_mnist_28.onnx"
    assert data["passed"] is True
    made = {path.name for path in tmp_path.iterdir()} - {"labels.json"}
    assert {Path(name).name for name in data["files"]} == made
    manifest = data["manifest"]
    assert manifest["config"]["depth"] == 1
    assert manifest["certificate"][0]["tolerance"] > 0
    assert manifest["labels"][7] == "digit 7"
    assert manifest["activation"] == "sigmoid"
    prepared = manifest["preprocess"]
    assert (prepared["mean"], prepared["std"], prepared["crop_pct"]) == ([0.5], [0.25], 0.8)
    assert prepared["interpolation"] == "bilinear"
    assert "RANDOM" in result.stderr
    assert "next: vit-export predict vit_mnist_28.onnx" in result.stderr


def test_a_module_of_another_image_size_is_one_sentence_and_a_hint(tmp_path, monkeypatch):
    """In JSON too; most modules made by timm assert their size."""
    (tmp_path / "sized.py").write_text(
        "from torch import nn\n"
        "class Sized(nn.Conv2d):\n"
        "    def forward(self, x):\n"
        "        assert x.shape[-1] == 32, 'Input height (224) does not match model (32)'\n"
        "        return super().forward(x).mean((2, 3))\n"
        "def make():\n"
        "    return Sized(3, 4, 8)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    result = call("onnx", "--module", "sized:make", "--json")
    assert result.exit_code == 1, result.output
    answer = last_json(result)
    assert "AssertionError: Input height (224) does not match model (32)" in answer["error"]
    assert "--img-size" in answer["hint"]
    assert result.stderr.splitlines()[-1] == f"hint: {answer['hint']}"


def test_predict_scores_are_probabilities(tiny_export, photographs):
    """Best first; the provider is named."""
    result = call("predict", tiny_export.path, *photographs, "--top", "10", "--json")
    assert result.exit_code == 0, result.output
    predictions = last_json(result)["predictions"]
    assert [p["image"] for p in predictions] == [str(p) for p in photographs]
    for prediction in predictions:
        scores = [entry["score"] for entry in prediction["top"]]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1)
        assert prediction["provider"] == "cpu"
        assert set(prediction["top"][0]) == {"index", "label", "score"}
    image, best, *_ = call("predict", tiny_export.path, photographs[0]).stdout.splitlines()
    first = predictions[0]["top"][0]
    assert image == str(photographs[0])
    assert best == f"  {100 * first['score']:6.2f} %  {first['label']}"


def test_predict_takes_the_preparation_of_a_foreign_file_from_options(foreign, photographs):
    """Without them the error names what is missing."""
    result = call("predict", foreign, photographs[0])
    assert result.exit_code == 1
    assert "--mean" in result.stderr
    given = ("--mean", "0,0,0", "--std", "1,1,1", "--crop-pct", "1.0", "--json")
    result = call("predict", foreign, photographs[0], *given)
    assert result.exit_code == 0, result.output
    assert len(last_json(result)["predictions"][0]["top"]) == 3


def test_validate_passes_and_fails_by_exit_status(tiny_export, tmp_path):
    """0 for the artifact, 1 for a damaged copy, with the reason."""
    result = call("validate", tiny_export.path, "--json")
    assert result.exit_code == 0, result.output
    assert last_json(result)["passed"] is True
    model = onnx.load(tiny_export.path)
    weight = next(t for t in model.graph.initializer if t.name == "blocks.0.mlp.fc1.weight")
    values = onnx.numpy_helper.to_array(weight) * np.float32(1.01)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    damaged = tmp_path / "damaged.onnx"
    onnx.save(model, damaged)
    result = call("validate", damaged, "--golden", tiny_export.golden)
    assert result.exit_code == 1
    assert "blocks.0" in result.stdout
    assert "FAILED" in result.stdout


def test_inspect_shows_every_kind_of_file(tiny_export, foreign):
    """An artifact, an ONNX file of another tool, a golden file."""
    artifact = call("inspect", tiny_export.path)
    assert "vit_tiny_test" in artifact.stdout
    assert "torch -> onnx" in artifact.stdout
    other = call("inspect", foreign)
    assert other.exit_code == 0, other.output
    assert "no vit-export manifest" in other.stdout
    assert last_json(call("inspect", foreign, "--json"))["op_counts"] == {"ReduceMean": 1}
    assert last_json(call("inspect", tiny_export.golden, "--json"))["samples"] == 4


def test_variants_lists_them_all():
    """With the number of parameters."""
    rows = last_json(call("variants", "--json"))["variants"]
    assert [row["variant"] for row in rows] == list(VARIANTS)
    assert {row["variant"]: row["num_params"] for row in rows}["vit_base_patch16_224"] == 86567656
    assert "vit_mnist_28" in call("variants").stdout


def test_doctor_examines_this_machine():
    """Exit status 0 without --strict; with --json the text is on standard error."""
    result = call("doctor", "--json")
    assert result.exit_code == 0, result.output
    assert last_json(result)
    assert result.stderr


WRONG = [
    (2, ["onnx", "--variant", "vit_bse_patch16_224"], "did you mean 'vit_base_patch16_224'"),
    (2, ["onnx", "--variant", "mnist", "--set", "num_heads=7"], "not divisible by num_heads"),
    (2, ["onnx", "--variant", "b16", "--img-size", "225"], "not a multiple of patch_size"),
    (2, ["onnx", "--variant", "b16", "--set", "num_head=2"], "did you mean 'num_heads'"),
    (2, ["onnx", "--variant", "mnist", "--set", "depth"], "expected field=value"),
    (2, ["onnx", "--variant", "mnist", "--set", "depth=1", "--set", "depth=2"], "--set depth is"),
    (2, ["onnx", "--variant", "mnist", "--img-size", "28", "--set", "img_size=56"], "and with an"),
    (2, ["onnx", "--variant", "mnist", "--batch", "many"], "dynamic"),
    (2, ["onnx", "--variant", "mnist", "--opset", "7"], "--opset 7: expected 18 to 25"),
    (2, ["onnx", "--variant", "mnist", "--seed", "-1"], "--seed -1: expected a number from 0"),
    (2, ["onnx", "--variant", "mnist", "--outputs", "logit"], "did you mean 'logits'"),
    (2, ["onnx"], "--variant NAME"),
    (2, ["onnx", "--variant", "mnist", "--module", "a:b"], "stands alone"),
    (1, ["onnx", "--variant", "mnist", "-o", "/proc/none/m.onnx"], "no folder"),
    (2, ["onnx", "--variant", "mnist", "-o", "m.pt"], "must end in .onnx"),
    (2, ["onnx", "--variant", "mnist", "--labels", "missing.txt"], "no such file of labels"),
    (1, ["onnx", "--weights", "missing.safetensors"], "missing.safetensors"),
    (1, ["validate", "missing.onnx"], "no such file"),
    (1, ["predict", "missing.onnx", "a.jpg"], "no such file"),
    (1, ["inspect", "missing.onnx"], "no such file"),
    (2, ["predict", "missing.onnx"], "Missing argument"),
    (2, ["onxx"], "did you mean 'onnx'"),
    (2, ["predict", "x.onnx", "a.jpg", "--top", "0"], "--top"),
]


@pytest.mark.parametrize(("status", "arguments", "words"), WRONG, ids=lambda v: str(v)[:40])
def test_wrong_usage_is_an_error_message(status, arguments, words, tmp_path, monkeypatch):
    """In text and in JSON, with the right exit status; no file is left behind."""
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert result.exit_code == status, result.output
    assert words in result.stderr
    in_json = call(*arguments, "--json")
    assert in_json.exit_code == status
    answer = last_json(in_json)
    assert words in answer["error"] + answer.get("hint", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not an onnx file", b"hello" * 100])
def test_a_file_that_is_no_onnx_file_is_named_as_such(content, tmp_path):
    """For every command that reads one."""
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    for arguments in (["validate", path], ["inspect", path], ["predict", path, "a.jpg"]):
        result = call(*arguments)
        assert result.exit_code == 1
        assert re.search("not an ONNX file|empty|is a checkpoint", result.stderr)


@pytest.mark.parametrize("command", ["validate", "predict"])
def test_rejected_providers_of_a_list_are_notes_and_in_json(tiny_export, photographs, command):
    images = photographs[:1] if command == "predict" else []
    result = call(command, tiny_export.path, *images, "--provider", "cuda,cpu", "--json")
    assert result.exit_code == 0, result.output
    (note,) = (line for line in result.stderr.splitlines() if line.startswith("note: "))
    (reason,) = last_json(result)["rejected"].values()
    assert note == f"note: tiny.onnx runs on 'cpu': {reason}"
    assert reason.startswith("provider 'cuda': ")


def test_a_users_module_that_exits_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "exiting.py").write_text("def f(): raise SystemExit(0)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    result = call("onnx", "--module", "exiting:f", "--json")
    assert result.exit_code == 1
    assert last_json(result) == {"error": "--module exiting:f: the factory failed: SystemExit: 0"}


def test_bad_images_are_named(tiny_export, tmp_path):
    """A file that is missing, empty, no image or too large; a folder without images."""
    empty, text, huge = tmp_path / "empty.jpg", tmp_path / "text.jpg", tmp_path / "huge.png"
    empty.touch()
    text.write_text("hello")
    Image.new("1", (20_000, 20_000)).save(huge)
    bad = [tmp_path / "none.jpg", empty, text, huge]
    result = call("predict", tiny_export.path, *bad, "--json")
    assert result.exit_code == 1, result.output
    answer = last_json(result)
    assert [row["image"] for row in answer["predictions"]] == [str(path) for path in bad]
    for path, row in zip(bad, answer["predictions"], strict=True):
        assert str(path) in row["error"]
        assert row["error"] in answer["error"]
    (tmp_path / "folder").mkdir()
    result = call("predict", tiny_export.path, tmp_path / "folder")
    assert result.exit_code == 1, result.output
    assert str(tmp_path / "folder") in result.stderr


def test_one_unreadable_image_does_not_lose_the_others(tiny_export, photographs, tmp_path):
    """From a folder or a pattern: results, an error row, and exit status 1."""
    for i, photograph in enumerate(photographs):
        shutil.copy(photograph, tmp_path / f"{i}.jpg")
    (tmp_path / "1a.jpg").write_text("hello")
    (tmp_path / "notes.txt").write_text("not listed")
    for images in (tmp_path, tmp_path / "*.jpg"):
        result = call("predict", tiny_export.path, images, "--json")
        assert result.exit_code == 1
        rows = last_json(result)["predictions"]
        assert [Path(row["image"]).name for row in rows] == ["0.jpg", "1.jpg", "1a.jpg"]
        assert ["top" in row for row in rows] == [True, True, False]
        assert f"Error: {rows[2]['error']}" in result.stderr
    shown = call("predict", tiny_export.path, tmp_path)
    assert shown.exit_code == 1
    assert "name " in shown.stdout


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_there_is_refused(tiny_export, photographs, provider):
    """The CPU does not take its place."""
    result = call("predict", tiny_export.path, photographs[0], "--provider", provider)
    assert result.exit_code == 1
    assert "pip" in result.stderr
    result = call("predict", tiny_export.path, photographs[0], "--provider", "cudda")
    assert result.exit_code == 2
    assert "did you mean 'cuda'" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--provider", ""], "Error: --provider: expected at least one\n"),
        (["--provider", "cpu,cpu"], "Error: --provider cpu is given twice\n"),
        (["--provider", "auto,cpu"], "Error: --provider auto,cpu: auto chooses"),
        (["--provider", "CPUExecutionProvider"], "did you mean 'cpu'?"),
        (["--provider", "openvino", "--device", "1"], "Error: --device 1 is not for OpenVINO"),
    ],
)
def test_a_wrong_provider_is_named_by_its_option(tiny_export, photographs, arguments, message):
    result = call("predict", tiny_export.path, photographs[0], *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_help_is_quick():
    """0.15 s of processor time, which other processes do not lengthen; best of five."""

    def seconds(*arguments: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    quickest = min(seconds("-m", "vit_export", "--help") for _ in range(5))
    assert quickest < max(0.15, 12 * min(seconds("-c", "pass") for _ in range(5)))


def test_the_help_of_the_program_shows_every_summary_whole():
    assert "..." not in call("--help").stdout.partition("Commands:")[2]


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_has_help(name):
    """And takes --json."""
    result = call(name, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout
    assert main.commands[name].help


def test_commands_hand_options_on_by_name_so_that_their_types_are_checked():
    """A settings object that is built from a dictionary hides wrong types from mypy."""
    for path in (ROOT / "vit_export" / "cli").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") != "given":
                spread = [k.value for k in node.keywords if k.arg is None]
                called = [getattr(v.func, "id", "") for v in spread if isinstance(v, ast.Call)]
                assert "attributes" not in called, f"{path.name}:{node.lineno}"

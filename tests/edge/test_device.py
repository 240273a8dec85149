"""What a device does, with numpy, click, onnxruntime and pillow alone."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vit_export.artifact.golden import Golden
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.gate.validate import compare
from vit_export.runtime import load

DATA = Path(__file__).parent / "data"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "vit_export", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A copy of the artifact with its golden file."""
    for file in DATA.iterdir():
        shutil.copy(file, tmp_path)
    return tmp_path / "edge.onnx"


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """A picture of another size than the model's."""
    y, x = np.mgrid[0:90, 0:120]
    pixels = np.stack([2 * x, 2 * y, x + y], axis=-1).astype(np.uint8)
    path = tmp_path / "photo.jpg"
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("package", ["torch", "onnx", "onnx_ir", "onnxsim", "safetensors"])
def test_torch_and_onnx_are_not_installed_here(package):
    assert importlib.util.find_spec(package) is None


@pytest.mark.parametrize("resize", ["op", "matmul"])
def test_a_graph_that_prepares_images_passes_its_gate_and_predicts(artifact, photograph, resize):
    """With the oldest Pillow and ONNX Runtime too: the same pixels, and so the same classes."""
    embedded = artifact.with_name(f"edge.{resize}.onnx")
    done = run("validate", embedded, "--provider", "cpu", "--json")
    assert done.returncode == 0, done.stderr
    stage = json.loads(done.stdout.splitlines()[-1])["hop"]
    assert stage["passed"] is True
    assert stage["measurements"][0]["output"] == "pixel_values"
    found, expected = (load(path).classify(photograph, top=10) for path in (embedded, artifact))
    scores = {p.label: p.score for p in expected}
    assert {p.label: p.score for p in found} == pytest.approx(scores, abs=1e-3)


@pytest.mark.parametrize("precision", ["fp16", "int8", "int8-static"])
def test_narrow_artifacts_run_and_pass_their_gate(artifact, precision):
    narrow = artifact.with_name(f"edge.{precision}.onnx")
    done = run("validate", narrow, "--provider", "cpu", "--json")
    assert done.returncode == 0, done.stderr
    stage = json.loads(done.stdout.splitlines()[-1])["hop"]
    assert stage["passed"] is True
    assert stage["batches"] == [1, 2, 3]
    assert OnnxFile.read(narrow).manifest.precision == precision


def test_predict_classifies_a_picture(artifact, photograph):
    done = run("predict", artifact, photograph, "--top", "3", "--json")
    assert done.returncode == 0, done.stderr
    (prediction,) = json.loads(done.stdout.splitlines()[-1])["predictions"]
    assert prediction["provider"] == "cpu"
    assert len(prediction["top"]) == 3
    assert prediction["top"][0]["label"] in OnnxFile.read(artifact).manifest.labels


def test_validate_passes_the_artifact(artifact):
    done = run("validate", artifact, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["passed"] is True
    assert result["hop"]["batches"] == [1, 2, 3]


def test_inspect_shows_the_manifest(artifact):
    done = run("inspect", artifact)
    assert done.returncode == 0, done.stderr
    assert "vit_edge_test" in done.stdout
    assert "airplane" in done.stdout


def damage(artifact: Path, weight: str, factor: float) -> None:
    """Multiply one weight in the file's bytes."""
    tensor = next(t for t in OnnxFile.read(artifact).initializers if t.name == weight)
    content = bytearray(artifact.read_bytes())
    place = slice(tensor.offset, tensor.offset + tensor.nbytes)
    values = np.frombuffer(bytes(content[place]), np.float32) * np.float32(factor)
    content[place] = values.tobytes()
    artifact.write_bytes(bytes(content))


def test_validate_refuses_a_damaged_weight_and_names_the_block(artifact):
    damage(artifact, "blocks.1.mlp.fc1.weight", 1.01)
    done = run("validate", artifact)
    assert done.returncode == 1
    assert "first tensor outside its tolerance: blocks.1" in done.stdout
    assert "Traceback" not in done.stderr


def test_the_gate_runs_in_python_too(artifact):
    runner = load(artifact, provider="cpu").runner
    golden = Golden.read(artifact.with_suffix(".golden.npz"))
    assert compare(runner, golden).passed
    damage(artifact, "head.weight", 1.01)
    assert not compare(load(artifact, provider="cpu").runner, golden).passed


def test_export_says_what_to_install(tmp_path):
    done = run("onnx", "--variant", "mnist", "-o", tmp_path / "m.onnx")
    assert done.returncode == 1
    assert "pip install 'vit-export[export]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["variants", "doctor"])
def test_variants_and_doctor_run(command):
    done = run(command, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])


def test_bench_measures_on_the_device(artifact):
    quick = ("--rounds", "2", "--min-time", "0.02", "--warmup", "0", "--json")
    done = run("bench", artifact, "--batch", "1,2", *quick)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert [row["batch"] for row in rows] == [1, 2]
    assert all(row["median_ms"] > 0 and row["max_abs"] <= row["tolerance"] for row in rows)
    done = run("bench", artifact, "--against", "torch", *quick)
    assert done.returncode == 1
    assert "torch" in json.loads(done.stdout.splitlines()[-1])["rows"][1]["error"]

"""OpenVINO in ONNX Runtime, really run: active, measured, strict, and refused by name elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from onnx import helper
from ort_attributes import CHECKED_FIRST, missing_attributes
from PIL import Image

from vit_export.errors import ProviderError, UsageError
from vit_export.runtime import load

X = np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32)
node = helper.make_node


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "vit_export", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_wheel_is_the_oldest_that_reports_the_provider_of_each_node():
    """What it lacks of the used attributes, the package checks before it uses them."""
    assert onnxruntime.__version__ == "1.24.1"
    assert "OpenVINOExecutionProvider" in onnxruntime.get_available_providers()
    assert missing_attributes(onnxruntime) == CHECKED_FIRST


def test_a_tensor_is_refused_with_the_version_that_takes_one(artifact):
    """`OrtValue.from_dlpack` came after 1.24.1; an array runs."""
    model = load(artifact, provider="openvino")
    tensor = SimpleNamespace(__dlpack__=X.__dlpack__, __dlpack_device__=X.__dlpack_device__)
    with pytest.raises(ProviderError, match=r"needs onnxruntime 1\.26 or newer, and 1\.24\.1 is"):
        model.run(tensor)
    assert model.run(X).shape == (3, 10)


def test_it_computes_what_the_cpu_computes(artifact):
    """At two batch sizes, with options in ONNX Runtime's spelling."""
    expected = load(artifact, provider="cpu").run(X)
    with load(artifact, provider="openvino", options={"device_type": "CPU"}) as model:
        assert model.provider == "openvino"
        assert model.runner.nodes_on_cpu == 0
        for size in (3, 1):
            np.testing.assert_allclose(model.run(X[:size]), expected[:size], atol=1e-5)


def test_ti16_validates_and_the_certificate_names_the_provider(ti16):
    """The gate of a full-size model, from its golden file, and its blocks."""
    done = run("validate", ti16, "--provider", "openvino", "--json", "--trace")
    assert done.returncode == 0, done.stderr
    stage = json.loads(done.stdout.splitlines()[-1])["hop"]
    assert stage["provider"] == "openvino"
    assert stage["passed"] is True
    assert stage["max_abs"] > 0


def test_commands_take_a_list_and_say_which_provider_was_taken(artifact, tmp_path):
    """The first that is active."""
    Image.new("RGB", (40, 40)).save(tmp_path / "x.png")
    done = run("predict", artifact, tmp_path / "x.png", "--provider", "cuda,openvino,cpu")
    assert done.returncode == 0, done.stderr
    assert "provider: openvino" in done.stdout
    assert "runs on 'openvino': provider 'cuda': the installed onnxruntime" in done.stderr
    done = run("validate", artifact, "--provider", "qnn,openvino", "--json")
    assert json.loads(done.stdout.splitlines()[-1])["hop"]["provider"] == "openvino"
    done = run(
        "bench", artifact, "--provider", "cpu,openvino", "--rounds", "1", "--min-time", "0",
        "--warmup", "0", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert [(row["provider"], row["accepted"]) for row in rows] == [
        ("cpu", True), ("openvino", True),
    ]  # fmt: skip


def test_auto_does_not_choose_it(artifact):
    """Only cuda and cpu."""
    assert load(artifact).provider == "cpu"


def test_an_unknown_option_is_named(artifact):
    """By OpenVINO itself."""
    with pytest.raises(ProviderError, match="Invalid OpenVINO EP option: nonsense"):
        load(artifact, provider="openvino", options={"nonsense": "1"})
    for device in ("GPU.99", "wrong"):
        with pytest.raises(
            ProviderError, match=f"with options device_type={device}.*\nhint: check these options"
        ):
            load(artifact, provider="openvino", options={"device_type": device})
    with pytest.raises(UsageError, match=r'names them: options={"device_type": "GPU\.1"}'):
        load(artifact, provider="openvino", device=1)


def test_shape_arithmetic_on_the_cpu_is_accepted_and_counted(make_model):
    """Of a real split: OpenVINO has no Size and no BitShift."""
    path = make_model(
        node("Shape", ["m"], ["s"], name="shape"),
        node("Gather", ["s", "first"], ["b"], name="batch"),
        node("Concat", ["b", "rest"], ["t"], name="target", axis=0),
        node("Cast", ["t"], ["tu"], name="unsigned", to=13),
        node("BitShift", ["tu", "one"], ["up"], name="up", direction="LEFT"),
        node("BitShift", ["up", "one"], ["down"], name="down", direction="RIGHT"),
        node("Cast", ["down"], ["t2"], name="signed", to=7),
        node("Reshape", ["m", "t2"], ["y"], name="reshaped"),
        first=np.array([0]), rest=np.array([32]), one=np.array([1, 1], np.uint64),
    )  # fmt: skip
    model = load(path, provider="openvino")
    x = np.random.default_rng(1).standard_normal((3, 4, 8)).astype(np.float32)
    assert 0 < model.nodes_on_cpu < 8
    expected = load(path, provider="cpu").run(x)
    np.testing.assert_allclose(model.run(x), expected, atol=1e-5)


def test_a_heavy_node_on_the_cpu_is_refused_by_name(make_model):
    """Of a real split: OpenVINO has no Unique."""
    path = make_model(node("Unique", ["m"], ["y"], name="distinct"))
    with pytest.raises(
        ProviderError,
        match=r"other\.onnx: ONNX Runtime placed 1 of its nodes on CPUExecutionProvider instead of "
        r"'openvino': distinct \(Unique\)",
    ):
        load(path, provider="openvino")


@pytest.mark.parametrize("provider", ["cuda", "directml", "migraphx"])
def test_another_wheel_takes_the_place_of_this_one(artifact, provider):
    """They overwrite each other's files."""
    with pytest.raises(ProviderError, match="pip uninstall -y onnxruntime-openvino && pip install"):
        load(artifact, provider=provider)


def test_doctor_lists_it_as_active():
    """Among the providers of the wheel."""
    found = json.loads(run("doctor", "--json").stdout.splitlines()[-1])
    facts = {fact["name"]: fact for fact in found["facts"] if fact["topic"] == "provider"}
    assert facts["OpenVINOExecutionProvider"]["value"] == "active"

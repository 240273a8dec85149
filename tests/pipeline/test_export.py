"""The door `export`: what is written is what was measured, and nothing else is written."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from vit_export.artifact.golden import Golden
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.errors import (
    ArtifactError,
    ExportError,
    GateError,
    OutputError,
    SimplifyError,
    UsageError,
)
from vit_export.graph import simplify as simplify_stage
from vit_export.pipeline import build as build_stage
from vit_export.pipeline.export import export
from vit_export.pipeline.settings import ExportSettings, ValidateSettings
from vit_export.pipeline.validate import validate
from vit_export.runtime import load

SMALL_IMAGES = {"img_size": 8}
EVERY_OUTPUT = ("logits", "features", "tokens")
EVERYTHING = ExportSettings(outputs=EVERY_OUTPUT, external_data=True)


def digest(path: Path) -> str:
    """Return the hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_certificate_has_an_entry_per_stage_and_every_batch_of_the_published_file(tiny_export):
    """Both stages are measured against the float64 reference, not against each other."""
    certificate = OnnxFile.read(tiny_export.path).manifest.certificate
    assert [stage.name for stage in certificate] == ["torch -> onnx", "onnx -> simplified"]
    exported, published = certificate
    assert exported.row_max_abs is None  # of one image, no rows are compared
    assert published.row_max_abs <= published.tolerance
    for stage, batches, samples in zip(certificate, [(1,), (1, 2, 3)], [1, 4], strict=True):
        assert stage.passed is True
        assert stage.batches == batches
        assert stage.samples == samples
        assert 0 < stage.max_abs <= stage.tolerance
        assert stage.top1_agreement == 1


def test_the_artifact_gives_the_logits_of_the_torch_model(tiny_export, make_model):
    """Seen from outside, without the gate's own code."""
    pixels = np.random.default_rng(0).standard_normal((5, 3, 32, 32)).astype(np.float32)
    logits = load(tiny_export.path, provider="cpu").run(pixels)
    with torch.no_grad():
        expected = make_model().double()(torch.from_numpy(pixels).double()).numpy()
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()


def test_the_manifest_says_everything_that_a_device_needs(tiny_export):
    """Preparation, labels, signature, weights, blocks, versions, hash."""
    file = OnnxFile.read(tiny_export.path)
    manifest = file.manifest
    assert manifest.preprocess.size == (32, 32)
    assert manifest.labels == tuple(f"name {i}" for i in range(10))
    assert str(manifest.inputs[0]) == "pixel_values: float32 (batch_size, 3, 32, 32)"
    assert [spec.name for spec in manifest.outputs] == ["logits"] == [o.name for o in file.outputs]
    assert manifest.blocks == ("blocks.0", "blocks.1", "blocks.2")
    assert manifest.graph_sha256 == file.graph_sha256()
    assert {"vit-export", "torch", "onnx", "onnxruntime", "onnxsim"} <= set(manifest.toolchain)
    assert file.metadata["imgsz"] == "[32, 32]"
    assert set(file.metadata) == {"task", "imgsz", "names", "batch", "vit_export"}


SCRIPT = """
import sys
from vit_export.pipeline.export import export
from vit_export.pipeline.settings import ExportSettings
fields = {"depth": 1, "embed_dim": 32, "num_heads": 2}
export("mnist", sys.argv[1], settings=ExportSettings(overrides=fields))
"""


def test_the_reference_imports_nothing_that_only_the_graph_needs():
    """The child process that writes the graph imports it meanwhile: it takes seconds."""
    code = """if True:
        import sys
        from vit_export.pipeline import export
        from vit_export.pipeline.source import load_source, record_golden
        from vit_export.progress import silent

        record_golden(load_source("mnist"), None, silent)
        print(*({"onnx", "onnx_ir", "onnxscript", "onnxsim", "torch._dynamo"} & set(sys.modules)))
    """
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout == "\n"


@pytest.mark.slow
def test_two_exports_in_two_processes_are_byte_identical(tmp_path, monkeypatch):
    """No clock, no path, no random name, no order of a hash."""
    here, there = tmp_path / "here" / "same.onnx", tmp_path / "there" / "same.onnx"
    here.parent.mkdir()
    there.parent.mkdir()
    command = [sys.executable, "-c", SCRIPT, str(there)]
    child = subprocess.Popen(command, env={**os.environ, "PYTHONHASHSEED": "1"}, cwd=there.parent)
    monkeypatch.setattr(sys, "argv", ["", str(here)])
    exec(SCRIPT, {})
    assert child.wait() == 0
    for suffix in (".onnx", ".golden.npz"):
        assert digest(here.with_suffix(suffix)) == digest(there.with_suffix(suffix))
    content = here.read_bytes()
    for trace in (b".py", b"/torch/", b"stack_trace", bytes(tmp_path)):
        assert trace not in content


@pytest.mark.slow
@pytest.mark.parametrize("fields", [
    {"distilled": True}, {"global_pool": "avg"}, {"pos_embed": "sincos"}, {"pos_embed": "none"},
    {"representation_size": 24}, {"img_size": (32, 48)}, {"in_chans": 1}, {"qkv_bias": False},
    {"num_classes": 0}, {"read_token": 1}, {"act_layer": "gelu_tanh"},
])  # fmt: skip
def test_every_option_of_the_model_exports_and_passes(fields, exported):
    """Each changes the graph."""
    result = exported(**fields)
    assert result.comparison.passed
    operators = OnnxFile.read(result.path).op_counts
    assert not {"Shape", "Expand", "Gather", "ConstantOfShape"} & set(operators)


def test_attention_can_be_one_operator_and_the_graph_unsimplified(exported):
    """Opset 23 has a node for it, one per block; the only stage is measured on the packed file."""
    result = exported(settings=ExportSettings(attention="op", simplify=False))
    file = OnnxFile.read(result.path)
    assert file.opsets[""] == 23
    assert file.op_counts["Attention"] == 3
    assert "Softmax" not in file.op_counts
    assert [stage.name for stage in result.manifest.certificate] == ["torch -> onnx"]
    assert validate(result.path, settings=ValidateSettings(provider="cpu")).passed
    with pytest.raises(UsageError, match="--opset 20: expected 23 to 25"):
        export("mnist", settings=ExportSettings(attention="op", opset=20))


def test_features_and_tokens_are_outputs_on_request(exported):
    """Each is gated under its own name."""
    result = exported(settings=EVERYTHING)
    assert {m.output for m in result.comparison.stage.measurements} == set(EVERY_OUTPUT)
    outputs = load(result.path).runner.run({"pixel_values": np.zeros((2, 3, 32, 32), np.float32)})
    assert {name: y.shape for name, y in outputs.items()} == {
        "logits": (2, 10), "features": (2, 32), "tokens": (2, 17, 32)
    }  # fmt: skip


def test_a_fixed_batch_is_gated_at_that_size_and_classifies_any_number(exported, photographs):
    """The last batch is filled up."""
    result = exported(settings=ExportSettings(batch=3))
    assert result.comparison.stage.batches == (3,)
    many = load(result.path).classify([*photographs, *photographs, photographs[0]])
    assert len(many) == 5
    assert many[0] == many[2] == many[4] != many[1]


def test_weights_beside_the_file_on_request(exported, tmp_path):
    """The pair moves together; without its data the file is refused by name."""
    result = exported(settings=EVERYTHING)
    moved = [shutil.copy(file, tmp_path) for file in result.files]
    artifact, data = tmp_path / result.path.name, tmp_path / f"{result.path.name}.data"
    assert str(data) in map(str, moved)
    assert data.stat().st_size > artifact.stat().st_size
    assert validate(artifact, settings=ValidateSettings(provider="cpu")).passed
    data.rename(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match=data.name):
        load(artifact)


@pytest.mark.slow
def test_the_users_images_are_measured_too(exported, tmp_path, photographs):
    """They join the golden file after the synthetic ones."""
    for i, photograph in enumerate(photographs):
        Image.open(photograph).save(tmp_path / f"{i}.png")
    result = exported(settings=ExportSettings(images=tmp_path))
    assert result.comparison.stage.samples == 6
    assert Golden.read(result.golden).images.shape == (6, 32, 32, 3)


class Branches(nn.Module):
    """A user's network, which returns a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.layers = nn.Sequential(*(nn.Conv2d(8, 8, 1) for _ in range(3)))
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        pooled = self.layers(self.stem(x)).mean((2, 3))
        return {"scores": self.fc(pooled), "pooled": pooled}


def test_a_users_module_goes_through_the_same_gate(tmp_path):
    """Outputs keep their names, and the blocks are found."""
    torch.manual_seed(0)
    result = export(
        Branches(),
        tmp_path / "b.onnx",
        settings=ExportSettings(overrides={"img_size": 32}, preprocess={"mean": "0,0,0"}),
    )
    assert result.comparison.passed
    assert [spec.name for spec in result.manifest.outputs] == ["scores", "pooled"]
    assert result.manifest.blocks == ("layers.0", "layers.1", "layers.2")
    assert result.manifest.preprocess.mean == (0.0, 0.0, 0.0)


class DrawsNoise(nn.Module):
    """Adds random numbers to its outputs."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.fc(x.mean((2, 3)))
        return y + self.scale * torch.rand_like(y)


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_a_module_that_draws_random_numbers_is_refused(scale, tmp_path):
    """Two calls must give the same bits: with so large a baseline any artifact would pass."""
    with pytest.raises(GateError, match=r"(?s)called again.*random numbers"):
        export(
            DrawsNoise(scale),
            tmp_path / "noise.onnx",
            settings=ExportSettings(overrides=SMALL_IMAGES),
        )


class FixesItsBatch(nn.Module):
    """Returns two rows for any batch."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.mean((2, 3)).reshape(2, -1)[:, :3])


def test_a_module_that_fixes_its_batch_exports_at_that_size(tmp_path):
    """And at no other."""
    result = export(
        FixesItsBatch(),
        tmp_path / "two.onnx",
        settings=ExportSettings(overrides=SMALL_IMAGES, batch=2),
    )
    assert result.comparison.stage.batches == (2,)
    with pytest.raises((ExportError, GateError)):
        export(
            FixesItsBatch(),
            tmp_path / "three.onnx",
            settings=ExportSettings(overrides=SMALL_IMAGES, batch=3),
        )


def test_a_failed_gate_leaves_an_existing_file_and_nothing_else(tmp_path):
    """What was there stays until something better has passed."""
    output = tmp_path / "kept.onnx"
    output.write_text("precious")
    with pytest.raises(GateError, match=r"'logits' of shape \(2, 4\) for 4 images.*\n.*--batch"):
        export(FixesItsBatch(), output, settings=ExportSettings(overrides=SMALL_IMAGES))
    assert output.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [output]


def zeroed(path: Path) -> None:
    """Set the bias of the last layer of an ONNX file of `Branches` to zero."""
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name == "fc.bias")
    tensor.raw_data = bytes(len(tensor.raw_data))
    onnx.save(model, path)


def test_a_simplifier_that_changes_the_outputs_is_an_error_with_a_way_out(tmp_path, monkeypatch):
    """The hint names the option that exports without it."""
    real = build_stage.simplify

    def careless(source: Path, output: Path) -> None:
        real(source, output)
        zeroed(output)

    monkeypatch.setattr(build_stage, "simplify", careless)
    with pytest.raises(GateError, match="--no-simplify"):
        export(Branches(), tmp_path / "m.onnx", settings=ExportSettings(overrides=SMALL_IMAGES))
    assert not list(tmp_path.iterdir())


def test_an_exporter_that_mixes_rows_is_not_taken_for_the_simplifier(tmp_path, monkeypatch):
    """Its graph is right for one image, which is all that runs before the simplifier."""
    real = build_stage.export_module

    def careless(*arguments: object, **options: object) -> OnnxFile:
        path = real(*arguments, **options).path
        model = onnx.load(path)
        graph, (output, *_) = model.graph, model.graph.output
        for node in graph.node:
            node.output[:] = ["own" if name == output.name else name for name in node.output]
        graph.node.extend(
            [
                onnx.helper.make_node("ReduceMean", ["own", "batch_axis"], ["mean"]),
                onnx.helper.make_node("Sub", ["own", "own"], ["zero"]),
                onnx.helper.make_node("Add", ["mean", "zero"], [output.name]),
            ]
        )
        axis = onnx.numpy_helper.from_array(np.array([0]), "batch_axis")
        graph.initializer.append(axis)
        onnx.save(model, path)
        return OnnxFile.read(path)

    monkeypatch.setattr(build_stage, "export_module", careless)
    with pytest.raises(GateError, match=r"^torch -> onnx: .* at batch 3"):
        export(Branches(), tmp_path / "m.onnx", settings=ExportSettings(overrides=SMALL_IMAGES))
    assert not list(tmp_path.iterdir())


def test_the_packed_file_is_gated_without_the_simplifier_too(tmp_path, monkeypatch):
    """It is the file that is published."""
    real = build_stage.pack_artifact

    def careless(final: OnnxFile, path: Path, *arguments: object, **options: object) -> OnnxFile:
        real(final, path, *arguments, **options)
        zeroed(path)
        return OnnxFile.read(path)

    monkeypatch.setattr(build_stage, "pack_artifact", careless)
    settings = ExportSettings(overrides=SMALL_IMAGES, simplify=False)
    with pytest.raises(GateError, match="torch -> onnx"):
        export(Branches(), tmp_path / "m.onnx", settings=settings)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_simplifier_that_fails_is_an_error_with_a_way_out(make_model, tmp_path, monkeypatch):
    """The message names the option."""

    def failing(model: onnx.ModelProto, **options: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(simplify_stage.onnxsim, "simplify", failing)
    with pytest.raises(SimplifyError, match="--no-simplify"):
        export(make_model(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_model_with_nan_weights_is_refused(make_model, tmp_path):
    """There is nothing to compare with."""
    model = make_model()
    model.blocks[1].mlp.fc1.weight.data[0, 0] = float("nan")
    with pytest.raises(GateError, match="check the weights"):
        export(model, tmp_path / "nan.onnx")


@pytest.mark.parametrize("place", ["missing/model.onnx", "folder.onnx", "model.txt"])
def test_an_impossible_output_is_refused_before_any_work(place, tmp_path):
    """Loading 630 million parameters would take longer."""
    (tmp_path / "folder.onnx").mkdir()
    started = time.monotonic()
    with pytest.raises((OutputError, UsageError), match=r"cannot write|must end in"):
        export("h14_in21k", tmp_path / place)
    assert time.monotonic() - started < 5


@pytest.mark.slow
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    """A file size limit stands in for a full disk: the write fails midway all the same."""
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from vit_export.cli.main import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
        "main(['onnx', '--variant', 'mnist', '-o', sys.argv[1]])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "big.onnx")], capture_output=True, text=True
    )
    assert run.returncode == 1, run.stderr
    assert "big.onnx was not written" in run.stderr
    assert "Traceback" not in run.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_nothing(number, status, tmp_path):
    """Whether by Ctrl-C or by a supervisor."""
    command = [sys.executable, "-m", "vit_export", "onnx", "--variant", "s16", "-o", "s.onnx"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "float64" in line:
            break
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert "Traceback" not in errors
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_weights_of_an_earlier_export_do_not_stay_behind(make_model, tmp_path):
    """They would be taken for the weights of the new file."""
    path = tmp_path / "model.onnx"
    export(make_model(depth=1), path, settings=ExportSettings(external_data=True))
    export(make_model(depth=1), path)
    assert {file.name for file in tmp_path.iterdir()} == {"model.onnx", "model.golden.npz"}


@pytest.mark.parametrize(("options", "words"), [
    ({"attention": "op"}, "scaled_dot_product_attention"),
    ({"reset_head": True}, "--weights FILE"),
    ({"dynamic_size": True}, "named variants"),
    ({"outputs": ("features",)}, "named variants"),
    ({"labels": ("a", "b")}, "2 labels for a model of 4 classes"),
])  # fmt: skip
def test_settings_that_a_module_cannot_follow_are_refused(options, words, tmp_path):
    """They would be ignored."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 2, 8), nn.Flatten(), nn.Linear(2, 4))
    with pytest.raises(UsageError, match=words):
        export(
            module,
            tmp_path / "m.onnx",
            settings=ExportSettings(overrides=SMALL_IMAGES, **options),
        )

"""The whole road: what is written is what was measured, and nothing else is written."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
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
from vit_export.checkpoint.own import save_checkpoint
from vit_export.errors import (
    ArtifactError,
    ExportError,
    GateError,
    OutputError,
    SimplifyError,
    UsageError,
)
from vit_export.graph import simplify as simplify_stage
from vit_export.pipeline.activation import choose_activation
from vit_export.pipeline.export import export
from vit_export.pipeline.record import record_golden
from vit_export.pipeline.settings import ExportSettings, ValidateSettings
from vit_export.pipeline.source import load_source
from vit_export.pipeline.validate import validate
from vit_export.progress import silent
from vit_export.runtime import load


def digest(path: Path) -> str:
    """Hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_certificate_has_a_line_per_hop_with_every_batch(tiny_export):
    """Both stages are measured against the float64 oracle, not against each other."""
    certificate = OnnxFile.read(tiny_export.path).manifest.certificate
    assert [stage.name for stage in certificate] == ["torch -> onnx", "onnx -> simplified"]
    for stage in certificate:
        assert stage.passed is True
        assert stage.batches == (1, 2, 3, 8)
        assert stage.samples == 8
        assert 0 < stage.max_abs <= stage.tolerance
        assert stage.row_max_abs <= stage.tolerance
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
from vit_export.pipeline.activation import choose_activation
from vit_export.pipeline.export import export
from vit_export.pipeline.record import record_golden
export("mnist", sys.argv[1], overrides={"depth": 2, "embed_dim": 32, "num_heads": 2})
"""


@pytest.mark.slow
def test_two_exports_in_two_processes_are_byte_identical(tmp_path):
    """No clock, no path, no random name, no order of a hash."""
    paths = [tmp_path / f"run{i}" / "same.onnx" for i in range(2)]
    for seed, path in enumerate(paths):
        path.parent.mkdir()
        subprocess.run(
            [sys.executable, "-c", SCRIPT, str(path)],
            check=True,
            env={**os.environ, "PYTHONHASHSEED": str(seed + 1)},
            cwd=path.parent,
        )
    assert digest(paths[0]) == digest(paths[1])
    golden = [path.with_suffix(".golden.npz") for path in paths]
    assert digest(golden[0]) == digest(golden[1])
    content = paths[0].read_bytes()
    for trace in (b".py", b"/torch/", b"stack_trace", bytes(tmp_path)):
        assert trace not in content


@pytest.mark.slow
@pytest.mark.parametrize("fields", [
    {"distilled": True}, {"global_pool": "avg"}, {"pos_embed": "sincos"}, {"pos_embed": "none"},
    {"representation_size": 24}, {"img_size": (32, 48)}, {"in_chans": 1}, {"qkv_bias": False},
    {"num_classes": 0}, {"read_token": 1}, {"act_layer": "gelu_tanh"},
])  # fmt: skip
def test_every_option_of_the_model_exports_and_passes(fields, make_model, tmp_path):
    """Each changes the graph."""
    result = export(make_model(**fields), tmp_path / "model.onnx")
    assert result.comparison.passed
    operators = OnnxFile.read(result.path).op_counts
    assert not {"Shape", "Expand", "Gather", "ConstantOfShape"} & set(operators)


def test_attention_as_one_operator(exported, make_model, tmp_path):
    """Opset 23 has a node for it; one per block."""
    file = OnnxFile.read(exported(settings=ExportSettings(attention="op")).path)
    assert file.opsets[""] == 23
    assert file.op_counts["Attention"] == 3
    with pytest.raises(UsageError, match="needs --opset 23"):
        export(
            make_model(), tmp_path / "op.onnx", settings=ExportSettings(attention="op", opset=20)
        )


def test_features_and_tokens_are_outputs_where_asked(make_model, tmp_path):
    """Each is gated under its own name."""
    wanted = ("logits", "features", "tokens")
    result = export(make_model(), tmp_path / "all.onnx", settings=ExportSettings(outputs=wanted))
    assert {m.output for m in result.comparison.stage.measurements} == set(wanted)
    outputs = load(result.path).runner.run({"pixel_values": np.zeros((2, 3, 32, 32), np.float32)})
    assert {name: y.shape for name, y in outputs.items()} == {
        "logits": (2, 10), "features": (2, 32), "tokens": (2, 17, 32)
    }  # fmt: skip
    with pytest.raises(UsageError, match="did you mean 'tokens'"):
        export(make_model(), tmp_path / "x.onnx", settings=ExportSettings(outputs=("token",)))


def test_a_fixed_batch_is_gated_at_that_size_and_classifies_any_number(
    make_model, tmp_path, photographs
):
    """What does not fill the batch is filled up."""
    result = export(make_model(), tmp_path / "four.onnx", settings=ExportSettings(batch=4))
    assert result.comparison.stage.batches == (4,)
    classifier = load(result.path)
    many = classifier.classify([*photographs, *photographs, photographs[0]])
    assert len(many) == 5
    assert many[0] == many[2] == many[4] != many[1]


def test_weights_beside_the_file_on_request(make_model, tmp_path):
    """The pair moves together; without its data the file is refused by name."""
    result = export(
        make_model(), tmp_path / "out.onnx", settings=ExportSettings(external_data=True)
    )
    data = tmp_path / "out.onnx.data"
    assert data in result.files
    assert data.stat().st_size > result.path.stat().st_size
    assert validate(result.path, settings=ValidateSettings(provider="cpu")).passed
    data.rename(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match=r"out\.onnx\.data"):
        load(result.path)


@pytest.mark.slow
def test_the_users_pictures_are_measured_too(make_model, tmp_path, photographs):
    """They join the golden file after the synthetic ones."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, photograph in enumerate(photographs):
        Image.open(photograph).save(folder / f"{i}.png")
    result = export(make_model(), tmp_path / "model.onnx", settings=ExportSettings(images=folder))
    assert result.comparison.stage.samples == 10
    assert Golden.read(result.golden).images.shape == (10, 32, 32, 3)


class Branches(nn.Module):
    """A small network of somebody else, which returns a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.layers = nn.Sequential(*(nn.Conv2d(8, 8, 1) for _ in range(3)))
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        pooled = self.layers(self.stem(x)).mean((2, 3))
        return {"scores": self.fc(pooled), "pooled": pooled}


def test_anybodys_module_goes_through_the_same_gate(tmp_path):
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


@pytest.mark.parametrize(
    ("last", "settings", "activation", "note"),
    [
        (nn.Identity(), {}, "softmax", ""),
        (nn.Softmax(1), {}, "none", "ends? in a softmax"),
        (nn.Sigmoid(), {}, "none", "ends? in a sigmoid"),
        (nn.Softmax(1), {"activation": "softmax"}, "softmax", ""),
    ],
)
def test_a_module_that_computes_probabilities_is_found_out(last, settings, activation, note):
    """A second softmax would flatten them; the option decides where it is given."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten(), nn.Linear(4, 5), last)
    given = ExportSettings(overrides={"img_size": 8}, **settings)
    loaded = load_source(module, settings=given)
    found, notes = choose_activation(loaded, record_golden(loaded, None, silent), given)
    assert found == activation
    assert re.search(note, " ".join(notes))
    assert bool(notes) == bool(note)


def test_scores_of_a_multi_label_checkpoint_are_sigmoids(make_model, tmp_path):
    """As `problem_type` in its config.json says."""
    save_checkpoint(make_model(), tmp_path / "model.safetensors")
    loaded = dataclasses.replace(
        load_source(None, weights=tmp_path / "model.safetensors"), activation="sigmoid"
    )
    golden = record_golden(loaded, None, silent)
    activation, notes = choose_activation(loaded, golden, ExportSettings())
    assert activation == "sigmoid"
    assert "sigmoid" in notes[0]
    assert choose_activation(loaded, golden, ExportSettings(activation="none")) == ("none", ())


class DrawsNoise(nn.Module):
    """Computes something else each time."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.mean((2, 3))) + torch.rand(1)


def test_a_module_that_draws_random_numbers_is_refused(tmp_path):
    """Its baseline would be so large that anything passes."""
    with pytest.raises(GateError, match="random numbers"):
        export(
            DrawsNoise(),
            tmp_path / "noise.onnx",
            settings=ExportSettings(overrides={"img_size": 8}),
        )


class DrawsALittleNoise(nn.Module):
    """So little that a loose gate would not see it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.fc(x.mean((2, 3)))
        return y + 1e-4 * torch.rand_like(y)


def test_a_little_noise_is_refused_too(tmp_path):
    """Two calls must give the same bits."""
    with pytest.raises(GateError, match="called again"):
        export(
            DrawsALittleNoise(),
            tmp_path / "noise.onnx",
            settings=ExportSettings(overrides={"img_size": 8}),
        )


class FixesItsBatch(nn.Module):
    """Gives two rows, whatever comes in."""

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
        settings=ExportSettings(overrides={"img_size": 8}, batch=2),
    )
    assert result.comparison.stage.batches == (2,)
    with pytest.raises((ExportError, GateError)):
        export(
            FixesItsBatch(),
            tmp_path / "three.onnx",
            settings=ExportSettings(overrides={"img_size": 8}, batch=3),
        )


def test_a_failed_gate_leaves_an_existing_file_and_nothing_else(tmp_path):
    """What was there stays until something better has passed."""
    output = tmp_path / "kept.onnx"
    output.write_text("precious")
    with pytest.raises(GateError, match=r"torch -> onnx.*--batch"):
        export(FixesItsBatch(), output, settings=ExportSettings(overrides={"img_size": 8}))
    assert output.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [output]


def test_a_simplifier_that_changes_the_outputs_is_an_error_with_a_way_out(
    make_model, tmp_path, monkeypatch
):
    """Never a silent skip."""
    real = simplify_stage.onnxsim.simplify

    def careless(model: onnx.ModelProto, **options: object) -> tuple[onnx.ModelProto, bool]:
        simplified, ok = real(model, **options)
        bias = next(t for t in simplified.graph.initializer if t.name == "head.bias")
        bias.raw_data = bytes(len(bias.raw_data))
        return simplified, ok

    monkeypatch.setattr(simplify_stage.onnxsim, "simplify", careless)
    with pytest.raises(GateError, match="--no-simplify"):
        export(make_model(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
    assert export(
        make_model(), tmp_path / "model.onnx", settings=ExportSettings(simplify=False)
    ).comparison.passed


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
def test_an_impossible_output_is_refused_before_any_work(place, tmp_path, make_model):
    """Seconds matter less than a clear word."""
    (tmp_path / "folder.onnx").mkdir()
    started = time.monotonic()
    with pytest.raises((OutputError, UsageError), match=r"cannot write|must end in"):
        export("h14_in21k", tmp_path / place)
    assert time.monotonic() - started < 5


@pytest.mark.slow
def test_a_full_disk_is_named_and_leaves_nothing(make_model, tmp_path, monkeypatch):
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
    assert "cannot write" in run.stderr
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


def test_validate_asks_for_a_golden_file_or_weights(tiny_export, tmp_path):
    """And says how to give them."""
    alone = tmp_path / "alone.onnx"
    alone.write_bytes(tiny_export.path.read_bytes())
    with pytest.raises(ArtifactError, match="--golden FILE"):
        validate(alone)
    assert validate(alone, settings=ValidateSettings(golden=tiny_export.golden)).passed
    with pytest.raises(UsageError, match="--layout needs --weights"):
        validate(alone, settings=ValidateSettings(golden=tiny_export.golden, layout="timm"))
    with pytest.raises(UsageError, match="two sources of the reference"):
        validate(
            alone, settings=ValidateSettings(golden=tiny_export.golden, weights="w.safetensors")
        )


@pytest.mark.slow
def test_the_truth_is_computed_again_from_the_checkpoint(make_model, tmp_path):
    """Whatever the export changed: preparation, activation, size, head; another one fails."""
    weights = tmp_path / "weights.safetensors"
    save_checkpoint(make_model(), weights)
    changes = [
        {"preprocess": {"mean": "0.2,0.2,0.2"}},
        {"overrides": {"act_layer": "gelu_tanh"}},
        {"overrides": {"img_size": 48}},
        {"overrides": {"num_classes": 4}, "reset_head": True},
        {"dynamic_size": True},
    ]
    for number, change in enumerate(changes):
        result = export(
            None, tmp_path / f"{number}.onnx", weights=weights, settings=ExportSettings(**change)
        )
        found = validate(result.path, settings=ValidateSettings(weights=weights, provider="cpu"))
        assert found.passed, (change, found.stage.reason)
    other = tmp_path / "other.safetensors"
    save_checkpoint(make_model(seed=5), other)
    assert not validate(
        tmp_path / "0.onnx", settings=ValidateSettings(weights=other, provider="cpu")
    ).passed


@pytest.mark.slow
def test_weights_of_an_earlier_export_do_not_stay_behind(make_model, tmp_path):
    """A file that nothing refers to any more would be taken for the weights."""
    path = tmp_path / "model.onnx"
    export(make_model(), path, settings=ExportSettings(external_data=True))
    export(make_model(), path)
    assert {file.name for file in tmp_path.iterdir()} == {"model.onnx", "model.golden.npz"}


@pytest.mark.parametrize(("options", "words"), [
    ({"attention": "op"}, "scaled_dot_product_attention"),
    ({"reset_head": True}, "--weights FILE"),
    ({"dynamic_size": True}, "named variants"),
    ({"outputs": ("features",)}, "named variants"),
    ({"labels": ("a", "b")}, "2 labels for a model of 4 classes"),
])  # fmt: skip
def test_what_a_module_cannot_follow_is_refused(options, words, tmp_path):
    """Not ignored."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 2, 8), nn.Flatten(), nn.Linear(2, 4))
    with pytest.raises(UsageError, match=words):
        export(
            module,
            tmp_path / "m.onnx",
            settings=ExportSettings(overrides={"img_size": 8}, **options),
        )

"""The torch model of an artifact, built from its manifest."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from vit_export.artifact.engine_sidecar import sidecar_path
from vit_export.artifact.golden import Golden
from vit_export.artifact.manifest import TensorSpec
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.vocabulary import IMAGE
from vit_export.benchmark import torch_worker
from vit_export.benchmark.torch_worker import TorchRunner
from vit_export.checkpoint.own import save_checkpoint
from vit_export.errors import ArtifactError, ProviderError, UsageError
from vit_export.images.prepare import normalize
from vit_export.pipeline.export import ExportResult, export
from vit_export.pipeline.settings import ExportSettings


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    """An artifact with weights from seed 5 and config fields unlike the variant's."""
    overrides = {"depth": 2, "embed_dim": 32, "num_heads": 2, "norm_eps": 1e-3}
    path = tmp_path_factory.mktemp("seeded") / "seeded.onnx"
    return export("mnist", path, settings=ExportSettings(overrides=overrides, seed=5))


@pytest.fixture
def engine(seeded, make_sidecar, tmp_path) -> Path:
    """An engine of the seeded artifact, of which only the sidecar is there."""
    path = tmp_path / "seeded.engine"
    make_sidecar(manifest=seeded.manifest).write(sidecar_path(path))
    return path


def check_golden(runner: TorchRunner, result: ExportResult) -> None:
    """Check that torch computes the golden logits, with the accuracy of float32."""
    golden = Golden.read(result.golden)
    feeds = {"pixel_values": normalize(golden.images, result.manifest.preprocess)}
    outputs = runner.run(feeds)
    assert list(outputs) == ["logits"]
    atol = 4 * golden.e32["logits"]
    np.testing.assert_allclose(outputs["logits"], golden.outputs["logits"], rtol=0, atol=atol)


def test_a_checkpoint_gives_the_model_of_the_artifact(tiny_export, make_model, tmp_path):
    """With the outputs of the golden file; attention is computed in its fused form."""
    weights = tmp_path / "tiny.safetensors"
    save_checkpoint(make_model(), weights)
    runner = TorchRunner(tiny_export.path, weights=str(weights), provider="cpu")
    assert runner.provider == "cpu"
    check_golden(runner, tiny_export)


def test_a_seed_gives_the_model_of_the_artifact(seeded):
    """Changed config fields come from the manifest."""
    check_golden(TorchRunner(seeded.path, provider="cpu"), seeded)


def test_the_model_of_an_engine_comes_from_its_sidecar(engine, seeded):
    """The engine itself is not opened: it is no ONNX file."""
    runner = TorchRunner(engine, provider="cpu")
    assert [(spec.name, spec.shape[1:]) for spec in runner.inputs] == [
        ("pixel_values", (1, 28, 28))
    ]
    check_golden(runner, seeded)


def test_a_manifest_without_a_config_field_is_an_artifact_error(make_sidecar, seeded, tmp_path):
    """With a checkpoint too, whose missing fields come from the manifest."""
    config = {name: value for name, value in seeded.manifest.config.items() if name != "norm_eps"}
    path = tmp_path / "old.engine"
    manifest = msgspec.structs.replace(seeded.manifest, config=config)
    make_sidecar(manifest=manifest).write(sidecar_path(path))
    for weights in (None, "some.safetensors"):
        with pytest.raises(ArtifactError, match=r"old\.engine.*lacks 'norm_eps'"):
            TorchRunner(path, weights=weights, provider="cpu")


def test_threads_limit_torch(seeded):
    """As many as are given."""
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            TorchRunner(seeded.path, provider="cpu", threads=threads)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_missing_weights_architecture_and_devices_are_errors(tiny_export, tmp_path):
    """Each names what is missing, and what to do."""
    with pytest.raises(UsageError, match="came from 'given module'") as caught:
        TorchRunner(tiny_export.path)
    assert caught.value.hint == "give them with --weights FILE"
    if not torch.cuda.is_available():
        with pytest.raises(ProviderError, match="no usable GPU"):
            TorchRunner(tiny_export.path, provider="cuda")
    foreign = tmp_path / "foreign.onnx"
    foreign.write_bytes(tiny_export.path.read_bytes().replace(b"vit_export", b"not_export"))
    with pytest.raises(ArtifactError, match="its architecture is unknown") as caught:
        TorchRunner(foreign)
    assert caught.value.hint == "leave --against out"


def test_torch_is_not_compared_with_a_graph_that_prepares_images(tiny_export, monkeypatch):
    """It would time another work."""
    manifest = OnnxFile.read(tiny_export.path).manifest
    whole = TensorSpec(IMAGE, "uint8", ("batch", "height", "width", 3))
    monkeypatch.setattr(torch_worker, "read_manifest", lambda _: manifest.replace(inputs=(whole,)))
    with pytest.raises(ArtifactError, match="its graph prepares images too") as caught:
        TorchRunner(tiny_export.path)
    assert "without --preprocess embedded" in caught.value.hint

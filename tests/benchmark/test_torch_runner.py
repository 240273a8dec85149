"""The torch model of an artifact, built from what its manifest says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.benchmark.torch_runner import TorchRunner
from vit_export.checkpoint.own import save_checkpoint
from vit_export.errors import ArtifactError, ProviderError, UsageError
from vit_export.pipeline.export import export
from vit_export.pipeline.settings import ExportSettings


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Two images for the tiny model."""
    return np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)


def test_a_checkpoint_gives_the_artifacts_own_model(tiny_export, make_model, images, tmp_path):
    """What it computes is what the model computes, in attention's fused form."""
    model = make_model()
    weights = tmp_path / "tiny.safetensors"
    save_checkpoint(model, weights)
    runner = TorchRunner(tiny_export.path, weights=str(weights), provider="cpu")
    found = runner.run({"pixel_values": images})
    assert runner.provider == "cpu"
    assert list(found) == ["logits"]
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found["logits"], expected, rtol=0, atol=1e-5)


def test_a_seed_gives_the_artifacts_own_model(tmp_path):
    """Config fields that were changed are in the manifest."""
    path = tmp_path / "seeded.onnx"
    result = export(
        "mnist", path, settings=ExportSettings(overrides={"depth": 2, "norm_eps": 1e-5}, seed=5)
    )
    runner = TorchRunner(path, provider="cpu")
    assert result.manifest.config["depth"] == 2
    found = runner.run({"pixel_values": np.zeros((3, 1, 28, 28), np.float32)})
    assert found["logits"].shape == (3, 10)


def test_threads_are_torchs_threads(tmp_path):
    """As many as were asked for."""
    path = tmp_path / "seeded.onnx"
    export("mnist", path, settings=ExportSettings(overrides={"depth": 1}))
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            TorchRunner(path, provider="cpu", threads=threads)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_what_cannot_be_built_says_what_is_missing(tiny_export, tmp_path):
    """Weights that nobody gave, a file that names no architecture, a place torch does not know."""
    with pytest.raises(UsageError, match="--weights FILE"):
        TorchRunner(tiny_export.path)
    with pytest.raises(ProviderError, match="does not run on 'tensorrt'"):
        TorchRunner(tiny_export.path, provider="tensorrt")
    with pytest.raises(ProviderError, match="no usable GPU"):
        TorchRunner(tiny_export.path, provider="cuda")
    foreign = tmp_path / "foreign.onnx"
    foreign.write_bytes(OnnxFile.read(tiny_export.path).path.read_bytes().replace(
        b"vit_export", b"not_export"))  # fmt: skip
    with pytest.raises(ArtifactError, match="which architecture"):
        TorchRunner(foreign)

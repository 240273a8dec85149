"""`--text-embeddings`: an image encoder classifies by the user's own words, and is gated so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner, Result
from originals import perturb
from torch import nn

from vit_export.cli.main import main
from vit_export.errors import UsageError
from vit_export.images.prepare import prepare_batch
from vit_export.model.vit import VisionTransformer
from vit_export.pipeline.settings import ExportSettings
from vit_export.pipeline.source import load_source
from vit_export.runtime import load

WORDS = ("a pagoda", "a flower", "a photo of a cat")
TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 64, "patch_size": 8, "image_size": 32}  # fmt: skip
TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
        "intermediate_size": 64, "vocab_size": 100}  # fmt: skip


def onnx(*words: object) -> Result:
    return CliRunner().invoke(main, ["onnx", *map(str, words)])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Any]:
    """A tiny CLIP, its folder, and the ids of three texts."""
    torch.manual_seed(0)
    config = transformers.CLIPConfig(vision_config={**TOWER, "projection_dim": 24},
                                     text_config=TEXT, projection_dim=24)  # fmt: skip
    model = perturb(transformers.CLIPModel(config))
    with torch.no_grad():
        model.logit_scale.fill_(3.0)
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    return model.double(), folder, torch.randint(1, 99, (3, 7))


@pytest.fixture
def file(clip: tuple[Any, Path, Any], tmp_path: Path) -> Path:
    """What a user's script writes with the text tower."""
    model, _, ids = clip
    with torch.no_grad():
        found = model.text_projection(model.text_model(input_ids=ids).pooler_output)
    path = tmp_path / "words.npz"
    np.savez(path, names=np.array(WORDS), vectors=found.numpy(), logit_scale=3.0)
    return path


@pytest.mark.parametrize("door", ["--weights", pytest.param("--hf", marks=pytest.mark.slow)])
def test_clip_classifies_with_the_users_words(door, clip, file, photographs, tmp_path):
    """Logits and probabilities are those of the whole model in float64."""
    model, folder, ids = clip
    output = tmp_path / "clip.onnx"
    result = onnx(door, folder, "--text-embeddings", file, "-o", output)
    assert result.exit_code == 0, result.output
    with load(output, provider="cpu") as artifact:
        assert artifact.labels == WORDS
        assert [spec.name for spec in artifact.runner.outputs] == ["logits"]
        pixel_values = prepare_batch(photographs, artifact.preprocess)
        with torch.no_grad():
            y64 = model(
                input_ids=ids, pixel_values=torch.from_numpy(pixel_values).double()
            ).logits_per_image.numpy()
        stage = artifact.manifest.certificate[-1]
        measured = {m.output for m in stage.measurements}
        assert stage.passed
        assert measured == {"logits", "features"}
        assert np.abs(artifact.run(pixel_values) - y64).max() <= stage.tolerance
        assert artifact.activation == "softmax"
        top = artifact.classify(photographs[0], top=3)
        scores = np.exp(y64[0] - y64[0].max())
        expected = dict(zip(WORDS, scores / scores.sum(), strict=True))
        assert {p.label: p.score for p in top} == pytest.approx(expected, abs=1e-5)
        assert artifact.embed(photographs).shape == (2, 24)
        assert any("zero-shot head of 3" in line for line in artifact.manifest.weights.changes)
    again = CliRunner().invoke(main, ["validate", str(output), "--weights", str(folder)])
    if door == "--weights":
        assert again.exit_code == 2
        assert "its head is of text embeddings" in again.output
    assert CliRunner().invoke(main, ["validate", str(output)]).exit_code == 0


class Encoder(nn.Module):
    """A user's module that names its features."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, width, 8, 8)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"features": self.layer(images).mean((2, 3))}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Two texts of four numbers, with a scale and a bias, as of SigLIP."""
    path = tmp_path / "small.npz"
    rows = np.random.default_rng(0).normal(size=(2, 4))
    np.savez(path, names=np.array(["a", "b"]), vectors=rows, scale=12.0, bias=-3.0)
    return path


def test_a_bias_makes_independent_scores(small):
    """A user's module too; the formula is SigLIP's."""
    module = Encoder()
    settings = ExportSettings(overrides={"img_size": 16}, text_embeddings=small)
    loaded = load_source(module, settings=settings)
    assert (loaded.activation, loaded.labels) == ("sigmoid", ("a", "b"))
    assert (loaded.outputs, loaded.model.names) == (("logits",), ("logits", "features"))
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        results = dict(zip(loaded.model.all_names, loaded.model(images), strict=False))
        features = module(images)["features"]
    with np.load(small) as file:
        text = torch.from_numpy(file["vectors"]).float()
    expected = 12 * torch.cosine_similarity(features[:, None], text[None], dim=-1) - 3
    torch.testing.assert_close(results["logits"], expected, rtol=1e-5, atol=1e-5)


def test_the_reference_is_in_float64_with_its_head(small):
    """The head is converted with the rest."""
    from vit_export.reference.precision import in_float64

    settings = ExportSettings(overrides={"img_size": 16}, text_embeddings=small)
    loaded = load_source(Encoder(), settings=settings)
    with torch.no_grad(), in_float64(loaded.model):
        results = loaded.model(torch.randn(1, 3, 16, 16, dtype=torch.float64))
    assert {x.dtype for x in results} == {torch.float64}
    assert loaded.model.zero_shot.weight.dtype == torch.float32


def test_what_cannot_have_such_a_head_is_refused(small, make_model, tmp_path):
    """With the reason."""
    bare = make_model(num_classes=0)
    for source, settings, reason in (
        (make_model(), {}, "has a head of its own, expected an image encoder"),
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(4)), {}, "has no output 'features'"),
        (bare, {}, r"its vectors have 4 numbers, .* have the shape \(B, 32\)"),
        (bare, {"labels": ["x", "y"]}, "two sources of the class names"),
        (Encoder(), {"outputs": ("logits", "token")}, "--outputs|unknown output"),
    ):
        with pytest.raises(UsageError, match=reason):
            load_source(source, settings=ExportSettings(text_embeddings=small, **settings))


def test_a_missing_scale_is_said(clip, file, tmp_path):
    """Scores of bare cosines are nearly alike."""
    _, folder, _ = clip
    with np.load(file) as arrays:
        np.savez(file, names=arrays["names"], vectors=arrays["vectors"])
    settings = ExportSettings(text_embeddings=file)
    loaded = load_source(None, weights=folder, settings=settings)
    assert isinstance(loaded.model.module, VisionTransformer)
    assert "words.npz gives no scale" in loaded.notes[0]

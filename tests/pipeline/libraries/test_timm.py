"""`--timm NAME`: models of timm, with its weights, its preparation and its labels, or refused."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from vit_export.errors import CheckpointError, UsageError, VitExportError
from vit_export.images.prepare import prepare_batch
from vit_export.pipeline.libraries.timm import load_timm
from vit_export.pipeline.settings import ExportSettings
from vit_export.runtime import load

PREPARATION = {"mean": "0.5", "std": "0.5", "crop_pct": "1", "interpolation": "bilinear"}


def timm_pixels(model: Any, **changes: Any) -> Callable[..., Any]:
    """Return timm's own transform for a model."""
    config = timm.data.resolve_model_data_config(model, args=changes)
    return timm.data.create_transform(**config)


def saved(model: nn.Module, path: Path, **changes: Any) -> Path:
    """Write the tensors of a model, with some of them changed or, where None, left out."""
    state: dict[str, Any] = {**model.state_dict(), **changes}
    save_file({name: x.contiguous() for name, x in state.items() if x is not None}, path)
    return path


def settings(**fields: Any) -> ExportSettings:
    return ExportSettings(**{"random_init": True, **fields})


@pytest.mark.parametrize("name", ["test_vit.r160_in1k", "test_convnext"])
def test_a_users_fine_tune_is_loaded_with_the_classes_of_its_head(
    name, same_pixels, randomised, tmp_path
):
    """To the bit, with timm's pixels, the file's hash, and no class names that it does not give."""
    original = randomised(timm.create_model(name, num_classes=7))
    weights = saved(original, tmp_path / "mine.safetensors")
    found = load_timm(name, weights=str(weights), settings=ExportSettings())
    images = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(found.compute(images)["logits"], original(images))
    same_pixels(found.preprocess, timm_pixels(original))
    assert (found.name, found.labels) == (name, ())
    assert (found.weights.source, found.weights.layout) == ("mine.safetensors", "timm")
    assert len(found.weights.sha256) == 64


@pytest.mark.slow
def test_a_swin_becomes_the_same_file(command, agrees, tmp_path):
    """A user's fine-tune for seven classes, at a small size."""
    name = "swin_tiny_patch4_window7_224"
    torch.manual_seed(0)
    original = timm.create_model(name, num_classes=7, img_size=96).eval()
    weights = saved(original, tmp_path / "mine.safetensors")
    result = command("--timm", name, "--weights", weights, "--img-size", 96)
    assert result.exit_code == 0, result.output
    agrees(original.double(), timm_pixels(original, input_size=(3, 96, 96)))


def test_random_weights_are_said_aloud_and_features_can_be_embedded(
    command, agrees, photographs, tmp_path
):
    """The seed decides the weights; what the head reads is a tensor of the graph."""
    result = command("--timm", "test_vit", "--random-init", "--seed", 5)
    assert result.exit_code == 0, result.output
    assert "WARNING: the weights are RANDOM (seed 5)" in result.output
    torch.manual_seed(5)
    original = timm.create_model("test_vit").eval().double()
    manifest = agrees(original, timm_pixels(original))
    assert manifest["weights"]["seed"] == 5
    with load(tmp_path / "x.onnx", provider="cpu") as model:
        found = model.embed(photographs)
        images = torch.from_numpy(prepare_batch(photographs, model.preprocess)).double()
    with torch.no_grad():
        tokens = original.forward_features(images)
        expected = original.forward_head(tokens, pre_logits=True).numpy()
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_outputs_and_sizes_are_chosen_as_for_a_variant():
    """Convolutional networks take any size; a transformer is built for it."""
    for name in ("test_vit", "test_convnext"):
        found = load_timm(name, weights=None, settings=settings(overrides={"img_size": "96"}))
        assert found.preprocess.size == (96, 96)
        assert set(found.compute(torch.zeros(1, 3, 96, 96))) == {"logits", "features"}
    bare = load_timm("test_vit", weights=None, settings=settings(overrides={"num_classes": 0}))
    assert set(bare.compute(torch.zeros(1, 3, 160, 160))) == {"features"}


def test_a_head_whose_halves_differ_from_the_whole_gives_logits_only(monkeypatch):
    """Nobody is told that other numbers are the features."""
    kind = type(timm.create_model("test_vit"))
    whole = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, x: 2 * whole(self, x))
    found = load_timm("test_vit", weights=None, settings=settings())
    assert set(found.compute(torch.zeros(1, 3, 160, 160))) == {"logits"}


def test_pretrained_weights_are_loaded_by_timm_itself(monkeypatch, randomised, tmp_path):
    """With ImageNet's names; here timm finds them in a file instead of the network."""
    path = tmp_path / "test_vit.safetensors"
    original = randomised(timm.create_model("test_vit"))
    saved(original, path)
    _downloaded(monkeypatch, "test_vit.r160_in1k", path)
    found = load_timm("test_vit.r160_in1k", weights=None, settings=ExportSettings())
    images = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(found.compute(images)["logits"], original(images))
    assert found.weights.source == "timm/test_vit.r160_in1k"
    assert not found.weights.random
    assert len(found.labels) == 1000
    assert found.labels[281].startswith("tabby")
    for overrides, reason in (
        ({"num_classes": 7}, "have 1000 classes, and 7 were asked for: that head would be random"),
        ({"in_chans": 1}, "read 3 channels, and 1 were asked for"),
    ):
        with pytest.raises(UsageError, match=reason):
            load_timm("test_vit", weights=None, settings=ExportSettings(overrides=overrides))
    bare = ExportSettings(overrides={"num_classes": 0})
    found = load_timm("test_vit.r160_in1k", weights=None, settings=bare)
    with torch.no_grad():
        expected = original.forward_head(original.forward_features(images), pre_logits=True)
        assert torch.equal(found.compute(images)["features"], expected)
    assert found.labels == ()


def test_pretrained_weights_that_leave_tensors_random_are_refused(
    monkeypatch, randomised, tmp_path
):
    """Timm itself only logs it where it does not load strictly."""
    path = tmp_path / "test_vit.safetensors"
    saved(randomised(timm.create_model("test_vit")), path, **{"norm.weight": None})
    _downloaded(monkeypatch, "test_vit.r160_in1k", path)
    with pytest.raises(CheckpointError, match=r"norm\.weight"):
        load_timm("test_vit", weights=None, settings=ExportSettings())
    builder = sys.modules["timm.models._builder"]
    strict = builder.load_pretrained
    monkeypatch.setattr(
        builder, "load_pretrained", lambda *a, **kw: strict(*a, **{**kw, "strict": False})
    )
    with pytest.raises(CheckpointError, match=r"Missing keys \(norm\.weight\)"):
        load_timm("test_vit", weights=None, settings=ExportSettings())


def _downloaded(monkeypatch: pytest.MonkeyPatch, name: str, path: Path) -> None:
    """Let timm load the weights of a name from a file."""
    builder = sys.modules["timm.models._builder"]
    found = builder._resolve_pretrained_source
    assert timm.get_pretrained_cfg(name).hf_hub_id
    monkeypatch.setattr(
        builder,
        "_resolve_pretrained_source",
        lambda config: ("file", str(path)) if config["architecture"] in name else found(config),
    )


def test_weights_without_a_network_are_one_sentence_and_a_hint(monkeypatch, tmp_path):
    """Loading is timm's own; the way out is named."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        CheckpointError, match="cannot build test_vit with its pretrained"
    ) as raised:
        load_timm("test_vit", weights=None, settings=ExportSettings())
    assert "--weights FILE" in raised.value.hint


def test_a_folder_of_timm_brings_labels_and_preparation(same_pixels, randomised, tmp_path):
    """As timm saves a model for the hub."""
    torch.manual_seed(0)
    original = randomised(timm.create_model("test_vit", num_classes=2))
    original.pretrained_cfg |= {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "crop_pct": 0.8,
                                "crop_mode": "squash"}  # fmt: skip
    labels = {"label_names": ["cat", "dog"]}
    timm.models.save_for_hf(original, tmp_path / "pets", model_config=labels)
    name = f"local-dir:{tmp_path / 'pets'}"
    found = load_timm(name, weights=None, settings=ExportSettings())
    images = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(found.compute(images)["logits"], original(images))
    same_pixels(found.preprocess, timm_pixels(timm.create_model(name, pretrained=True)))
    assert found.preprocess.crop_mode == "squash"
    assert (found.labels, found.name) == (("cat", "dog"), "pets")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"norm.weight": None}, r"1 missing:\n  - norm\.weight"),
        ({"norm.weights": torch.ones(64)}, r"1 not in the model:\n  \+ norm\.weights"),
        ({"norm.weight": torch.ones(3)}, r"norm\.weight: float32 \(3,\) in the file, float32 \(64"),
        ({"norm.weight": torch.ones(64, dtype=torch.int64)}, "int64 .* in the file"),
        ({"head.weight": None, "head.bias": None, "x": torch.ones(1)}, r"\+ x"),
    ],
)
def test_every_tensor_of_a_users_file_must_match(changes, reason, tmp_path):
    """Names and shapes are said."""
    weights = saved(timm.create_model("test_vit"), tmp_path / "w.safetensors", **changes)
    with pytest.raises(CheckpointError, match=reason):
        load_timm("test_vit", weights=str(weights), settings=ExportSettings())


def test_a_file_without_a_head_gives_features(tmp_path):
    """Its number of classes is zero."""
    model = timm.create_model("test_vit", num_classes=0).eval()
    weights = saved(model, tmp_path / "w.safetensors")
    found = load_timm("test_vit", weights=str(weights), settings=ExportSettings())
    images = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(found.compute(images)["features"], model(images))


REFUSED = [
    ("test_vitt", {}, "did you mean .*'test_vit'"),
    ("test_vit.r160_in2k", {}, r"no weights 'r160_in2k'; did you mean 'r160_in1k'"),
    ("me/test_vit", {}, "looks like a repository or a folder"),
    ("local-dir:/nowhere", {}, "timm cannot build local-dir:/nowhere"),
    ("test_vit", {"overrides": {"depth": 3}}, "has no field depth to change: only img_size"),
    ("test_vit", {"overrides": {"num_classes": "-1"}}, "num_classes must be at least 0"),
    ("test_vit", {"overrides": {"in_chans": 1}}, "have 3 channels, and 1 were asked for"),
    ("test_vit", {"overrides": {"img_size": 100}}, r"fails on inputs|cannot build"),
    ("vit_huge_patch14_gap_224", {"random_init": False, "tag": ""}, ""),
]


@pytest.mark.parametrize(("name", "fields", "reason"), REFUSED[:-1])
def test_names_and_fields_that_timm_lacks_are_refused(name, fields, reason):
    with pytest.raises(VitExportError, match=reason):
        load_timm(name, weights=None, settings=settings(**fields))


def test_a_model_without_pretrained_weights_says_so():
    name = next(n for n in timm.list_models("vit_*") if n not in timm.list_models(pretrained=True)
                and not timm.models.is_model_pretrained(n))  # fmt: skip
    with pytest.raises(UsageError, match=f"no pretrained weights for {name}"):
        load_timm(name, weights=None, settings=ExportSettings())


def test_a_preparation_that_ours_cannot_express_is_refused_by_name(monkeypatch):
    """A crop of a later timm, unless the user gives another preparation."""
    _configured(monkeypatch, crop_mode="later")
    with pytest.raises(UsageError, match="crop_mode='later'") as raised:
        load_timm("test_vit", weights=None, settings=settings())
    assert "--mean, --std, --crop-pct and --interpolation" in raised.value.hint
    given = load_timm("test_vit", weights=None, settings=settings(preprocess=PREPARATION))
    assert given.preprocess.interpolation == "bilinear"
    assert given.preprocess.mean == (0.5, 0.5, 0.5)


def test_a_border_is_drawn_as_timm_draws_it(monkeypatch):
    """Which the loading measures on pictures."""
    _configured(monkeypatch, crop_mode="border")
    assert load_timm("test_vit", weights=None, settings=settings()).preprocess.crop_mode == "border"


def _configured(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Let timm say something else of every model."""
    create = timm.create_model

    def created(*args: Any, **options: Any) -> Any:
        model = create(*args, **options)
        model.pretrained_cfg = {**model.pretrained_cfg, **changes}
        return model

    monkeypatch.setattr(timm, "create_model", created)


def test_a_preparation_that_computes_other_pixels_is_refused(monkeypatch):
    """Measured on pictures, whatever the fields say."""
    create = timm.data.create_transform
    monkeypatch.setattr(
        timm.data, "create_transform", lambda **config: create(**{**config, "crop_pct": 0.5})
    )
    with pytest.raises(UsageError, match=r"differs by .* of 255 levels"):
        load_timm("test_vit", weights=None, settings=settings())


def test_without_timm_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(CheckpointError, match="timm is not installed") as raised:
        load_timm("test_vit", weights=None, settings=settings())
    assert raised.value.hint == "pip install 'vit-export[timm]'"


def test_the_log_of_timm_is_as_before(caplog):
    """Its chatter is not shown meanwhile."""
    logger = logging.getLogger("timm")
    before = (logger.level, logger.propagate, list(logger.handlers))
    load_timm("test_vit", weights=None, settings=settings())
    assert (logger.level, logger.propagate, logger.handlers) == before
    assert not caplog.records


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--timm", "test_vit", "--variant", "b16"], "--variant and --timm are several sources"),
        (["--timm", "a", "--hf", "b"], "--timm and --hf are several sources"),
        (
            ["--timm", "test_vit", "--random-init", "--weights", "x.pth"],
            "two sources of the weights",
        ),
        (["--timm", "test_vit", "--random-init", "--dynamic-size"], "--dynamic-size is for named"),
        (["--timm", "test_vit", "--random-init", "--outputs", "token"], "unknown output 'token'"),
        (["--timm", "test_vit", "--random-init", "--reset-head", "--weights", "x"], "two sources"),
    ],
)
def test_options_that_contradict_each_other_are_wrong_usage(words, reason, command):
    result = command(*words)
    assert result.exit_code == 2, result.output
    assert reason in result.output

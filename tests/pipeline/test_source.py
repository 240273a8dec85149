"""A source becomes a model with named outputs, or is refused with the reason."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vit_export.artifact.manifest import TensorSpec
from vit_export.checkpoint.own import save_checkpoint
from vit_export.errors import ExportError, UnknownVariantError, UsageError
from vit_export.pipeline.settings import ExportSettings
from vit_export.pipeline.source import build_module, load_source

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def load(source: Any, *, weights: str | None = None, **settings: Any) -> Any:
    """Load a source with some settings."""
    return load_source(source, weights=weights, settings=ExportSettings(**settings))


def test_a_variant_becomes_a_model_with_random_weights_that_says_so():
    """By its full name, whatever the alias."""
    loaded = load("ti16", overrides={**SMALL, "num_classes": 2}, labels=["a", "b"], seed=3)
    assert loaded.variant == "vit_tiny_patch16_224"
    assert loaded.weights.source == "random (seed 3)"
    assert loaded.inputs == (TensorSpec("pixel_values", "float32", ("batch_size", 3, 32, 32)),)
    assert loaded.outputs == ("logits",)
    assert loaded.model.names == ("logits", "features")
    assert loaded.labels == ("a", "b")
    assert loaded.config["embed_dim"] == 32
    assert loaded.config["mean"] == [0.5, 0.5, 0.5]
    assert loaded.preprocess.size == (32, 32)
    assert not loaded.model.training


def test_a_given_model_keeps_its_weights(make_model):
    """It is exported in evaluation mode."""
    model = make_model()
    before = model.head.weight.clone()
    loaded = load(model.train(), batch=4, outputs=("tokens", "logits"))
    assert loaded.model.module is model
    assert torch.equal(model.head.weight, before)
    assert loaded.inputs[0].shape == (4, 3, 32, 32)
    assert loaded.outputs == ("tokens", "logits")
    assert loaded.weights.source == "given module"
    assert not model.training


def test_a_model_without_a_head_gives_its_features(make_model):
    """There are no logits to give."""
    assert load(make_model(num_classes=0)).outputs == ("features",)


def test_image_preparation_can_be_changed_and_is_checked(make_model):
    """As strings or numbers."""
    found = load(make_model(), preprocess={"mean": "0.1,0.2,0.3", "crop_pct": 1}).preprocess
    assert found.mean == (0.1, 0.2, 0.3)
    assert found.crop_pct == 1.0
    assert found.size == (32, 32)


class Net(nn.Module):
    """A user's module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(x).mean((2, 3)), x


def test_a_users_module_takes_images_of_the_given_size():
    """Its config has no fields."""
    loaded = load(Net(), overrides={"img_size": "24x16"})
    assert loaded.inputs[0].shape == ("batch_size", 3, 24, 16)
    assert loaded.outputs == ("logits", "output_1")
    assert loaded.variant == "Net"
    assert loaded.config == {}
    assert loaded.weights.source.endswith("Net")
    assert loaded.preprocess.size == (24, 16)


def test_a_module_made_by_timm_brings_its_image_preparation():
    """Input size and normalisation."""
    net = Net()
    net.default_cfg = {"input_size": (3, 16, 16), "mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0),
                       "crop_pct": 0.95, "interpolation": "bilinear",
                       "crop_mode": "border"}  # fmt: skip
    loaded = load(net, preprocess={"std": "0.5,0.5,0.5"})
    assert loaded.inputs[0].shape == ("batch_size", 3, 16, 16)
    prepared = loaded.preprocess
    assert (prepared.crop_pct, prepared.interpolation) == (0.95, "bilinear")
    assert prepared.crop_mode == "border"
    assert (prepared.mean, prepared.std) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    net.default_cfg = {"input_size": (16000,)}  # of another kind of input
    assert load(net).inputs[0].shape == ("batch_size", 3, 224, 224)


class WrongSizeError(Exception):
    """A kind of error that the user's code alone defines."""


class Particular(Net):
    """A module that takes images of one size, as every timm ViT does."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != 24:
            raise self.error
        return super().forward(x)[0]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (AssertionError("expected 24 px"), "AssertionError: expected 24 px"),
        (AssertionError(), "AssertionError in .*test_source.py, line .*raise self.error"),
        (WrongSizeError("24 px only"), "WrongSizeError: 24 px only"),
        (SystemError("deep inside"), "SystemError: deep inside"),
        (SystemExit("no images"), "SystemExit: no images"),
    ],
)
def test_a_module_that_fails_on_its_images_is_one_sentence_and_a_hint(error, words):
    """Whatever it raises; the hint names the option for the image size."""
    reason = rf"^Particular fails on inputs.*224\): {words}"
    with pytest.raises(ExportError, match=reason) as raised:
        load(Particular(error))
    assert "--img-size" in raised.value.hint
    assert load(Particular(error), overrides={"img_size": 24}).outputs == ("logits",)


class Nested(Net):
    """A module whose second output is a tuple."""

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor]]:
        return super().forward(x)[0], (x,)


def test_an_output_that_is_no_tensor_is_named():
    """The call itself has not failed."""
    with pytest.raises(
        ExportError, match="Nested cannot be exported: its output 'output_1' is a tuple"
    ):
        load(Nested())


@pytest.mark.parametrize("spelling", ["overrides", "preprocess"])
def test_two_spellings_of_one_setting_act_alike(spelling, make_model, tmp_path):
    """`--mean` and `--set mean=` change the config and the preparation."""
    given = {"mean": "0.1,0.2,0.3"}
    weights = tmp_path / "weights.safetensors"
    save_checkpoint(make_model(), weights)
    for loaded in (
        load(None, weights=str(weights), **{spelling: given}),
        load("mnist", **{spelling: {"mean": "0.3"}}),
    ):
        assert loaded.preprocess.mean == tuple(loaded.config["mean"])
        assert loaded.preprocess.mean[-1] == 0.3
    with pytest.raises(UsageError, match="mean is given twice"):
        load("ti16", overrides=given, preprocess=given)


REFUSED = [
    ({"source": None}, "nothing to export"),
    ({"source": "ti16", "batch": 0}, "batch size 0: must be at least 1"),
    ({"source": "ti16", "attention": "decompose"}, "did you mean 'decomposed'"),
    ({"source": "ti16", "opset": 17}, "--opset 17: expected 18 to 25"),
    ({"source": "ti16", "opset": 20, "attention": "op"}, "expected 23 to 25 with --attention op"),
    ({"source": "ti16", "overrides": SMALL, "labels": ["a"]}, "1 labels for a model of 1000"),
    ({"source": "ti16", "overrides": SMALL, "outputs": ["logit"]}, "did you mean 'logits'"),
    ({"source": "ti16", "overrides": SMALL, "preprocess": {"depth": 3}}, "cannot change depth"),
    ({"source": "ti16", "overrides": SMALL, "preprocess": {"mean": "1,1"}}, "mean has 2 values"),
    ({"source": Net(), "weights": "w.pt"}, "load the weights of a module in its factory"),
    ({"source": Net(), "outputs": ["tokens"]}, "--outputs is for named variants"),
    ({"source": Net(), "overrides": {"depth": 3}}, "a module has no field depth"),
]


@pytest.mark.parametrize(("fields", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_settings_that_do_not_fit_the_source_are_refused(fields, reason):
    """Before anything is exported."""
    with pytest.raises(UsageError, match=reason):
        load(**fields)


def test_a_built_model_takes_neither_weights_nor_overrides(make_model):
    """Both would be ignored."""
    for fields in ({"overrides": {"depth": 1}}, {"weights": "w.pt"}):
        with pytest.raises(UsageError, match="built already"):
            load(make_model(), **fields)


def test_an_unknown_variant_is_refused():
    """With the nearest names."""
    with pytest.raises(UnknownVariantError, match="did you mean"):
        load("b61")


FACTORIES = """
from torch import nn
def small(): return nn.Linear(2, 3)
ready = nn.Linear(2, 2)
number = 3
def wrong(): return "text"
def leaves(): raise SystemExit(0)
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    """A module of the user's in the current folder."""
    (tmp_path / "their_models.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("their_models", None)


def test_a_factory_of_the_current_folder_is_called(factories):
    """With the same random numbers each time."""
    first, second = build_module("their_models:small"), build_module("their_models:small")
    assert torch.equal(first.weight, second.weight)
    assert build_module("their_models:ready").out_features == 2


def test_a_factory_or_import_that_exits_is_an_error(factories, tmp_path):
    with pytest.raises(ExportError, match="the factory failed: SystemExit: 0"):
        build_module("their_models:leaves")
    (tmp_path / "exits.py").write_text("raise SystemExit")
    with pytest.raises(ExportError, match=r"import exits: SystemExit in .*exits\.py, line 1"):
        build_module("exits:f")


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("their_models", "expected package.module:factory"),
        (":small", "expected package.module:factory"),
        ("their_models:", "expected package.module:factory"),
        ("no_such_module:small", "cannot import no_such_module"),
        ("their_models:smal", "has no 'smal'; did you mean 'small'"),
        ("their_models:number", "gives an int, expected an nn.Module"),
        ("their_models:wrong", "gives a str, expected an nn.Module or a function"),
    ],
)
def test_a_factory_that_returns_no_module_is_refused(factories, spec, reason):
    """The message names what was found."""
    with pytest.raises(UsageError, match=reason):
        build_module(spec)

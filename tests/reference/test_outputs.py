"""Names of a module's outputs, and its blocks as taps."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vit_export.errors import ExportError, UsageError
from vit_export.reference.outputs import Outputs, find_blocks, module_outputs, vit_outputs


class Body(nn.Module):
    """A few layers; `wrap` is applied to their result."""

    def __init__(self, wrap: Any = lambda x: x) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 8, 8)
        self.layers = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(3))
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x).relu()
        return self.wrap(x.mean((2, 3)))


IMAGES = (torch.randn(2, 3, 16, 16),)


def hooks(module: nn.Module) -> int:
    """Number of hooks on a module and below."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


@pytest.mark.parametrize(
    ("wrap", "names"),
    [
        (lambda x: x, ("logits",)),
        (lambda x: (x, 2 * x), ("logits", "output_1")),
        (lambda x: [x], ("logits",)),
        (lambda x: {"scores": x, "features": 2 * x}, ("scores", "features")),
        (lambda x: OrderedDict(logits=x, hidden=None), ("logits",)),
        (lambda x: (x, None, 3 * x), ("logits", "output_2")),
    ],
    ids=["tensor", "tuple", "list", "dict", "mapping with None", "tuple with None"],
)
def test_returned_tensors_get_names(wrap, names):
    """A tensor is the logits; a mapping keeps its names; nothing is left out of a sequence."""
    model = module_outputs(Body(wrap).eval(), IMAGES)
    assert model.names == names
    assert model.taps == ("layers.0", "layers.1", "layers.2")
    outputs = model(*IMAGES)
    assert len(outputs) == len(model.all_names) == len(names) + 3
    found = model.module(*IMAGES)
    first = found if isinstance(found, Tensor) else next(iter(_values(found)))
    assert torch.equal(outputs[0], first)


def _values(found: Any) -> Any:
    return found.values() if isinstance(found, dict) else found


@pytest.mark.parametrize(
    ("wrap", "complaint"),
    [
        (lambda x: "text", "returns a str, expected tensors"),
        (lambda x: None, "returns a NoneType"),
        (lambda x: {"n": 3}, "its output 'n' is an int, expected a tensor"),
        (lambda x: (x, [x]), "its output 'output_1' is a list"),
    ],
)
def test_other_results_than_tensors_are_refused(wrap, complaint):
    """The error names what was returned."""
    with pytest.raises(ExportError, match=complaint):
        module_outputs(Body(wrap), IMAGES)


@pytest.mark.parametrize(
    "inputs", [(torch.randn(2, 1, 16, 16),), (torch.randn(2, 3, 4, 4),), (*IMAGES, *IMAGES), ()]
)
def test_inputs_that_do_not_fit_are_named_with_their_shape(inputs):
    """Channels, size, or number of arguments."""
    with pytest.raises(ExportError, match=r"Body fails on inputs of shape"):
        module_outputs(Body(), inputs)


def test_hooks_are_gone_after_use():
    """After the search, after a call, and after a call that fails."""
    body = Body().eval()
    model = module_outputs(body, IMAGES)
    assert hooks(body) == 0
    model(*IMAGES)
    assert hooks(body) == 0
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 5, 16, 16))
    assert hooks(body) == 0


def test_taps_are_the_outputs_of_the_blocks():
    """In order, and reduced by `keep_tap`."""
    body = Body().eval()
    model = module_outputs(body, IMAGES)
    first = body.layers[0](body.stem(*IMAGES))
    assert torch.equal(model(*IMAGES)[1], first)
    model.keep_tap = torch.sum
    assert torch.equal(model(*IMAGES)[1], first.sum())


def test_a_given_module_is_held_once():
    """Else its weights would have two names."""
    model = module_outputs(Body().eval(), IMAGES)
    assert {name.partition(".")[0] for name in model.state_dict()} == {"module"}


class SequenceFirst(nn.Module):
    """An encoder over (N, B, D)."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=False)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.embed = nn.Conv2d(3, 16, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(self.embed(x).flatten(2).permute(2, 0, 1)).mean(0)


def test_blocks_that_put_the_batch_elsewhere_are_no_taps():
    """They could not be compared row by row."""
    assert find_blocks(SequenceFirst()) == ["encoder.layers.0", "encoder.layers.1"]
    assert module_outputs(SequenceFirst().eval(), IMAGES).taps == ()


def test_blocks_that_are_never_called_are_no_taps():
    """A list of heads of which one is used."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleList(nn.Linear(3, 5) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.heads[1](x.mean((2, 3)))

    model = module_outputs(Heads(), IMAGES)
    assert model.taps == ("heads.1",)
    assert len(model(*IMAGES)) == 2


@pytest.mark.parametrize(
    ("result", "taps"),
    [
        (lambda x: (x, "state"), ("0", "1")),
        (lambda x: {"hidden": x}, ()),
        (lambda x: (None, x), ()),
    ],
    ids=["tuple", "dict", "no tensor first"],
)
def test_blocks_that_return_more_than_a_tensor(result, taps):
    """Of a tuple the first element is the tap; other results are ignored."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x: Any) -> Any:
            while not isinstance(x, Tensor):
                x = next(v for v in _values(x) if isinstance(v, Tensor))
            return result(self.scale * x)

    class Chain(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            for block in self:
                x = block(x)
            return next(v for v in _values(x) if isinstance(v, Tensor))

    assert module_outputs(Chain(Block(), Block()), IMAGES).taps == taps


def test_the_longest_list_of_alike_modules_with_weights_is_the_encoder():
    """Not a list of mixed layers, nor one of activations, nor a single block."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixed = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU())
            self.acts = nn.ModuleList(nn.ReLU() for _ in range(9))
            self.one = nn.ModuleList([nn.Linear(2, 2)])
            self.stages = nn.ModuleList(
                nn.Sequential(*(nn.Linear(2, 2) for _ in range(n))) for n in (1, 3)
            )

    assert find_blocks(Model()) == ["stages.1.0", "stages.1.1", "stages.1.2"]
    assert find_blocks(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))) == ["0", "1"]
    assert find_blocks(nn.Linear(2, 2)) == []


def test_our_model_returns_the_requested_outputs_and_always_its_features(make_model):
    """So that a zero head cannot hide a broken body."""
    model = make_model()
    assert vit_outputs(model).names == ("logits", "features")
    outputs = vit_outputs(model, ("tokens", "logits"))
    assert outputs.names == ("tokens", "logits", "features")
    assert outputs.taps == ("blocks.0", "blocks.1", "blocks.2")
    tokens, logits, features, *blocks = outputs(torch.randn(2, 3, 32, 32))
    assert tokens.shape == (2, 17, 32)
    assert logits.shape == (2, 10)
    assert torch.equal(features, tokens[:, 0])
    assert torch.equal(model.norm(blocks[-1]), tokens)


def test_of_the_last_block_only_the_tokens_that_are_read_are_kept(make_model):
    """All of them where the tokens are an output, or where the head averages them."""
    x = torch.randn(2, 3, 32, 32)
    model = make_model(distilled=True)
    read, whole = vit_outputs(model)(x)[-1], vit_outputs(model, ("tokens",))(x)[-1]
    assert torch.equal(read, whole[:, :2])
    assert whole.shape == (2, 18, 32)
    assert vit_outputs(make_model(global_pool="avg"))(x)[-1].shape == (2, 17, 32)


def test_a_model_without_head_has_no_logits(make_model):
    """It returns its features."""
    assert vit_outputs(make_model(num_classes=0)).names == ("features",)


def test_an_unknown_output_offers_the_nearest(make_model):
    """Before anything is computed."""
    with pytest.raises(UsageError, match=r"unknown output 'logit'; did you mean 'logits'"):
        vit_outputs(make_model(), ("logit",))


@pytest.mark.parametrize("training", [True, False])
def test_the_wrapper_keeps_the_mode_of_its_module(training):
    """Exporting must not switch dropout on."""
    assert Outputs(Body().train(training), names=("logits",), compute=dict).training is training

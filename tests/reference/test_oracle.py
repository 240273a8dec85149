"""Float64 reference outputs; the model is unchanged afterwards."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vit_export.artifact.golden import block_indices
from vit_export.errors import ExportError, GateError
from vit_export.reference.oracle import record, subsample
from vit_export.reference.outputs import module_outputs, vit_outputs
from vit_export.reference.precision import in_float64

GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.standard_normal((9, 3, 32, 32)).astype(np.float32)


def in_double(module: nn.Module, array: np.ndarray = IMAGES) -> Any:
    """Outputs of a copy of the whole module in float64."""
    exact = copy.deepcopy(module).double()
    with torch.no_grad():
        return exact(torch.from_numpy(array).double())


@pytest.mark.parametrize(
    "fields",
    [{}, {"distilled": True}, {"pos_embed": "sincos"}, {"representation_size": 12}],
)
def test_block_by_block_is_the_same_as_the_whole_model_in_float64(make_model, fields):
    """Widening float32 is exact, so nothing is lost on the way."""
    model = make_model(**fields)
    golden = record(vit_outputs(model), {"pixel_values": IMAGES[:8]})
    expected = in_double(model, IMAGES[:8]).numpy()
    assert golden.outputs["logits"].dtype == np.float64
    np.testing.assert_array_equal(golden.outputs["logits"], expected)


def test_samples_beyond_one_batch_keep_their_order(make_model):
    """Nine images are run as eight and one."""
    model = make_model()
    golden = record(vit_outputs(model), {"pixel_values": IMAGES})
    assert golden.samples == 9
    np.testing.assert_allclose(golden.outputs["logits"], in_double(model).numpy(), rtol=1e-12)


def test_the_baseline_is_the_distance_of_float32(make_model):
    """Largest over all samples."""
    model = make_model()
    golden = record(vit_outputs(model), {"pixel_values": IMAGES[:8]})
    with torch.no_grad():
        rounded = model(torch.from_numpy(IMAGES[:8])).double().numpy()
    assert golden.e32["logits"] == np.abs(rounded - golden.outputs["logits"]).max()
    assert 0 < golden.e32["logits"] < 1e-5


def test_parameters_and_hooks_are_as_before(make_model):
    """To the bit, float32, in the same places of memory."""
    model = make_model(pos_embed="sincos")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    record(vit_outputs(model), {"pixel_values": IMAGES[:2]})
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32, name
        assert torch.equal(tensor, before[name]), name
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_model_is_float32_again_after_a_failure(make_model):
    """An input of another size."""
    model = make_model()
    with pytest.raises(ExportError, match="fails in float64"):
        record(vit_outputs(model), {"pixel_values": IMAGES[:2, :, :16]})
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_only_the_block_that_runs_is_in_float64(make_model):
    """So a large model is not held twice."""
    model = make_model()
    wide: list[list[bool]] = []

    def look(*_: object) -> None:
        wide.append([b.mlp.fc1.weight.dtype == torch.float64 for b in model.blocks])

    for block in model.blocks:
        block.mlp.register_forward_hook(look)
    outputs = vit_outputs(model)
    with in_float64(outputs), torch.no_grad():
        outputs(torch.from_numpy(IMAGES[:1]).double())
    assert wide == [[True, False, False], [False, True, False], [False, False, True]]


def test_blocks_are_kept_as_a_subsample(make_model):
    """The elements that the golden file names, of the last block in the token that is read."""
    model = make_model()
    golden = record(vit_outputs(model), {"pixel_values": IMAGES[:8]})
    assert golden.blocks.names == ("blocks.0", "blocks.1", "blocks.2")
    assert golden.blocks.values.shape == (3, 8, 256)
    for indices, tokens in zip(golden.blocks.indices, (17, 17, 1), strict=True):
        np.testing.assert_array_equal(indices, block_indices(tokens * 32))
    outputs = vit_outputs(copy.deepcopy(model).double())
    with torch.no_grad():
        last = outputs(torch.from_numpy(IMAGES[:8]).double())[-1].flatten(1).numpy()
    np.testing.assert_array_equal(golden.blocks.values[2], last[:, golden.blocks.indices[2]])
    assert (golden.blocks.e32 > 0).all()


def test_tokens_are_subsampled_like_a_block(make_model):
    """They are too large to keep whole."""
    golden = record(vit_outputs(make_model(), ("tokens",)), {"pixel_values": IMAGES[:8]})
    assert set(golden.outputs) == {"features"}
    assert "tokens" in golden.blocks.names


def test_a_subsample_ends_with_the_size_of_its_row():
    """Short rows repeat elements, long rows are sampled evenly."""
    short = subsample(torch.arange(6.0).reshape(2, 3))
    assert short.shape == (2, 257)
    assert short[:, -1].tolist() == [3, 3]
    assert short[1, :-1].unique().tolist() == [3, 4, 5]
    long = subsample(torch.arange(1000.0).reshape(1, 1000))
    assert long[0, 0] == 0
    assert long[0, -2] == 999


@pytest.mark.parametrize("cast", [torch.float16, torch.bfloat16, torch.float64])
def test_a_module_that_is_not_in_float32_is_refused(make_model, cast):
    """Its rounding errors would mix with those of the artifact."""
    model = make_model().to(cast)
    with pytest.raises(ExportError, match=r"(?s)only modules in float32 .*call \.float\(\)"):
        record(vit_outputs(model), {"pixel_values": IMAGES[:1]})
    assert {p.dtype for p in model.parameters()} == {cast}


def test_a_buffer_that_is_not_in_float32_is_refused():
    """Else it would come back as another dtype, silently."""

    class Scaled(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 2)
            self.register_buffer("scale", torch.ones(2, dtype=torch.float64) / 3)

    module = Scaled()
    with pytest.raises(ExportError, match=r"'scale' is torch\.float64"):
        record(module_outputs(module, [torch.zeros(2, 4)]), {"x": np.zeros((2, 4), np.float32)})
    assert module.scale.dtype == torch.float64


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(make_model, value):
    """There is nothing to compare with."""
    model = make_model()
    with torch.no_grad():
        model.blocks[1].mlp.fc2.bias[3] = value
    with pytest.raises(GateError, match=r"(?s)NaN or infinite .*check the weights"):
        record(vit_outputs(model), {"pixel_values": IMAGES[:1]})


def test_weights_that_overflow_in_float32_only_are_refused(make_model):
    """Finite in float64, infinite in float32: no baseline."""
    model = make_model()
    with torch.no_grad():
        model.head.weight.fill_(3e38)
    with pytest.raises(GateError, match=r"torch\.float32"):
        record(vit_outputs(model), {"pixel_values": IMAGES[:1]})


class Casting(nn.Module):
    """Always casts to float32."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.mean((2, 3)).to(torch.float32))


def test_a_forward_that_casts_is_refused_with_the_reason():
    """The reference would not be float64."""
    module = Casting()
    with pytest.raises(ExportError, match=r"(?s)Casting fails in float64.*fixed dtype"):
        record(module_outputs(module, [torch.zeros(2, 3, 8, 8)]), {"x": IMAGES[:2]})
    assert module.head.weight.dtype == torch.float32


class Encoder(nn.Module):
    """torch's own Transformer encoder over patches."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 8, 8)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        tokens = self.encoder(self.embed(x).flatten(2).transpose(1, 2))
        return {"scores": self.head(tokens.mean(1)), "first": tokens[:, 0, :3]}


def small_cnn() -> nn.Module:
    """Convolutions and a batch norm with its buffers."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


@pytest.mark.parametrize("make", [Encoder, small_cnn])
def test_any_module_is_recorded_the_same_way(make):
    """Under the output names of the module."""
    torch.manual_seed(0)
    module = make().eval()
    golden = record(module_outputs(module, [torch.zeros(2, 3, 32, 32)]), {"x": IMAGES[:8]})
    expected = in_double(module, IMAGES[:8])
    named = expected if isinstance(expected, dict) else {"logits": expected}
    assert set(golden.outputs) == set(named)
    for name, values in named.items():
        np.testing.assert_allclose(golden.outputs[name], values.numpy(), rtol=0, atol=1e-13)
    assert golden.images is None
    np.testing.assert_array_equal(golden.inputs["x"], IMAGES[:8])
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_integer_inputs_are_not_converted():
    """A second input of token numbers is not converted."""

    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(9, 4)

        def forward(self, ids: Tensor, scale: Tensor) -> Tensor:
            return self.table(ids).sum(1) * scale

    ids, scale = np.arange(8).reshape(4, 2), np.ones((4, 1), np.float32) / 3
    model = module_outputs(Lookup(), [torch.from_numpy(ids), torch.from_numpy(scale)])
    golden = record(model, {"ids": ids, "scale": scale})
    assert golden.outputs["logits"].shape == (4, 4)
    assert golden.inputs["ids"].dtype == np.int64


def test_progress_counts_every_block_of_both_passes(make_model):
    """Nine images are two passes of three blocks in float64, and nine in float32."""
    steps: list[tuple[str, int, int]] = []
    record(
        vit_outputs(make_model()),
        {"pixel_values": IMAGES},
        progress=lambda stage, done=0, total=0: steps.append((stage, done, total)),
    )
    for what, total in (("float64", 6), ("float32", 27)):
        assert [step for step in steps if what in step[0]] == [
            (f"torch {what}", done, total) for done in range(1, total + 1)
        ]


def test_a_number_for_all_images_is_no_output():
    """Its hint is not that of a model that fixes its batch size."""

    class Pair(nn.Module):
        def forward(self, x):
            return x.flatten(1), x.mean()

    images = torch.zeros(4, 3, 8, 8)
    with pytest.raises(GateError, match="gives 'output_1' as one number for 4 images") as caught:
        record(module_outputs(Pair(), [images]), {"pixel_values": images.numpy()})
    assert "leave this one out" in caught.value.hint

"""Our Vision Transformer compared with timm's in float64, and its initial weights."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_export.model.vit import (
    DropPath,
    VisionTransformer,
    attend_decomposed,
    create_model,
    sincos_pos_embed,
)
from vit_export.variants import PREPARATION, VARIANTS, ViTConfig, weights_license

timm = importlib.import_module("timm")  # after the conftest has made torchvision importable

WITH_TIMM = [name for name in VARIANTS if name != "vit_mnist_28"]


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a state dict."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("name", WITH_TIMM)
def test_tensor_names_and_shapes_are_those_of_timm(name):
    """So a checkpoint of timm needs no renaming; timm has dropped the pre-logits layer."""
    config = VARIANTS[name]
    known = name.removesuffix("_in21k").split(".")[0]
    with torch.device("meta"):
        ours = shapes(VisionTransformer(config))
        timms = timm.create_model(known, num_classes=config.num_classes)
        theirs = {
            re.sub(r"gamma_(\d)", r"ls\1.gamma", name): shape  # of DINOv3
            for name, shape in shapes(timms).items()
        }
    extra = {"pre_logits.fc.weight", "pre_logits.fc.bias"} if config.representation_size else set()
    extra |= {"projection.weight"} if config.projection_dim else set()
    assert set(ours) - set(theirs) == extra
    assert {name: ours.get(name) for name in theirs} == theirs


@pytest.mark.parametrize("name", [n for n in WITH_TIMM if VARIANTS[n].hub.startswith("timm/")])
def test_image_preparation_is_that_of_the_weights_in_the_table(name):
    """mean, std, crop and interpolation, as timm keeps them beside its weights."""
    config = VARIANTS[name]
    theirs = timm.get_pretrained_cfg(config.hub.removeprefix("timm/"))
    assert config.image_hw == theirs.input_size[1:]
    assert weights_license(config) == theirs.license
    for field in (*PREPARATION, "num_classes"):
        assert getattr(config, field) == getattr(theirs, field), field


TIMM_KEYWORDS = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_tiny_patch16_224", {"num_classes": 0}),
        ("vit_tiny_patch16_224", {"in_chans": 1, "mlp_ratio": 2.0, "qkv_bias": False}),
        ("vit_tiny_patch16_224", {"img_size": (48, 32)}),
        ("deit_tiny_distilled_patch16_224", {}),
    ],
)
def test_outputs_are_those_of_timm_in_float64(compare, randomised, name, overrides):
    """With the same state dict."""
    keywords = {**TIMM_KEYWORDS, "num_classes": 7, **overrides}
    theirs = randomised(timm.create_model(name, **keywords))
    model = create_model(VARIANTS[name].replace(keywords))
    model.load_state_dict(theirs.state_dict(), strict=True)
    assert compare(model, theirs) < 1e-13


def test_average_pooling_is_that_of_timm_without_its_second_norm(compare, randomised):
    """With `fc_norm=False` timm normalises before it averages, as vit-export always does."""
    keywords = {**TIMM_KEYWORDS, "num_classes": 7, "global_pool": "avg"}
    theirs = randomised(timm.create_model("vit_tiny_patch16_224", **keywords, fc_norm=False))
    model = create_model(VARIANTS["vit_tiny_patch16_224"].replace(keywords))
    model.load_state_dict(theirs.state_dict(), strict=True)
    assert compare(model, theirs) < 1e-13


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_decomposed_attention_equals_the_fused_operator(scale):
    """Also where the softmax is close to one-hot."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        scale * torch.randn(2, 3, 7, 5, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    torch.testing.assert_close(
        attend_decomposed(q, k, v), F.scaled_dot_product_attention(q, k, v), rtol=1e-12, atol=1e-13
    )


def test_both_forms_of_attention_give_the_same_model(tiny_config):
    """The fused operator, which holds no N x N weights while training, is the default."""
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    model = create_model(tiny_config).double()
    assert {b.attn.attend for b in model.blocks} == {F.scaled_dot_product_attention}
    fused = model(x)
    assert model.set_attention("decomposed") is model
    assert {b.attn.attend for b in model.blocks} == {attend_decomposed}
    torch.testing.assert_close(model(x), fused, rtol=1e-11, atol=1e-12)


def test_training_keeps_no_attention_weights_in_memory(tiny_config):
    """N x N numbers per head, image and block would be most of what training needs."""
    model = create_model(tiny_config).train()
    num_tokens = model.config.num_tokens
    shapes = []

    def keep(tensor):
        shapes.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.randn(2, 3, 32, 32))
    assert shapes
    assert not [shape for shape in shapes if shape[-2:] == (num_tokens, num_tokens)]


def sincos_by_hand(config: ViTConfig) -> Tensor:
    """Positions from the formula, one number at a time."""
    rows, columns = config.grid_hw
    quarter = config.embed_dim // 4
    table = torch.zeros(config.num_tokens, config.embed_dim, dtype=torch.float64)
    for row in range(rows):
        for column in range(columns):
            token = config.num_prefix_tokens + row * columns + column
            for i in range(quarter):
                rate = 1 / 10000 ** (i / quarter)
                angles = (column * rate, column * rate, row * rate, row * rate)
                waves = (math.sin, math.cos, math.sin, math.cos)
                for part, (wave, angle) in enumerate(zip(waves, angles, strict=True)):
                    table[token, part * quarter + i] = wave(angle)
    return table


@pytest.mark.parametrize("fields", [{}, {"img_size": (24, 40)}, {"distilled": True}])
def test_fixed_positions_follow_the_formula(tiny_config, fields):
    """Half of the width encodes the column, half the row; prefix tokens get zeros."""
    config = tiny_config.replace({"pos_embed": "sincos", **fields})
    found = sincos_pos_embed(config)
    torch.testing.assert_close(found[0], sincos_by_hand(config).float(), rtol=0, atol=1e-7)
    model = create_model(config)
    assert "pos_embed" in model.state_dict()
    assert "pos_embed" not in dict(model.named_parameters())


def test_drop_path_keeps_the_expectation_and_drops_whole_images():
    """Each image is kept and scaled, or dropped."""
    torch.manual_seed(0)
    layer = DropPath(0.25).train()
    out = layer(torch.ones(20000, 2, 3))
    per_image = out.reshape(20000, -1)
    assert per_image.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert (per_image.min(dim=1).values == per_image.max(dim=1).values).all()
    assert out.mean().item() == pytest.approx(1, abs=0.02)


def test_drop_path_is_the_identity_in_evaluation_mode():
    """And at rate zero."""
    x = torch.randn(4, 2, 3)
    assert DropPath(0.9).eval()(x) is x
    assert DropPath(0.0).train()(x) is x


def test_stochastic_depth_grows_linearly_to_the_last_block(tiny_config):
    """The first block is never dropped."""
    model = create_model(tiny_config.replace({"drop_path_rate": 0.2}))
    rates = [block.drop_path.drop_prob for block in model.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2])
    model.train()
    x = torch.randn(8, 3, 32, 32)
    assert not torch.equal(model(x), model(x))


def test_dropout_works_in_training_only(tiny_config):
    """After the embedding, the projection and both MLP layers."""
    model = create_model(tiny_config.replace({"drop_rate": 0.5}))
    dropouts = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    assert {m.p for m in dropouts} == {0.5}
    assert len(dropouts) == 1 + 2 * 3
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


def test_the_seed_alone_decides_the_weights(tiny_config):
    """Not the global random state, which stays as it was."""
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = create_model(tiny_config, seed=3).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    second = create_model(tiny_config, seed=3).state_dict()
    other = create_model(tiny_config, seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_weights_start_from_a_narrow_normal_and_biases_from_zero():
    """Standard deviation 0.02, as timm and the papers."""
    model = create_model(VARIANTS["vit_mnist_28"].replace({"distilled": True}))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        elif parameter.numel() >= 960:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.15), name
            assert abs(parameter.mean().item()) < 2e-3, name
        else:
            assert parameter.any(), name
    assert not model.training


def test_an_average_leaves_the_prefix_tokens_out(make_model):
    """The patches only."""
    model = make_model(global_pool="avg")
    tokens = torch.arange(17.0).reshape(1, 17, 1).expand(2, 17, 32)
    assert torch.equal(model.pool(tokens), torch.full((2, 32), 8.5))


@pytest.mark.parametrize("read", [0, 1, 16])
def test_the_token_that_is_read_can_be_chosen(make_model, read):
    """Some checkpoints read a patch."""
    model = make_model(read_token=read)
    tokens = torch.randn(2, 17, 32)
    assert torch.equal(model.pool(tokens), tokens[:, read])


def test_the_representation_layer_is_linear_and_tanh(make_model):
    """Between the token and the head."""
    model = make_model(representation_size=12)
    tokens = torch.randn(2, 17, 32)
    heads = model.forward_heads(tokens)
    features = torch.tanh(tokens[:, 0] @ model.pre_logits.fc.weight.T + model.pre_logits.fc.bias)
    torch.testing.assert_close(heads["features"], features)
    torch.testing.assert_close(heads["logits"], features @ model.head.weight.T + model.head.bias)
    assert model.head.in_features == 12


def test_a_model_without_classes_gives_its_features(make_model):
    """The head is the identity."""
    model = make_model(num_classes=0)
    x = torch.randn(2, 3, 32, 32)
    everything = model.forward_all(x)
    assert everything["logits"].shape == (2, 32)
    assert torch.equal(model(x), everything["features"])
    assert not [name for name in model.state_dict() if name.startswith("head")]


def test_a_distilled_model_averages_two_heads(make_model):
    """Each head reads its own token."""
    model = make_model(distilled=True)
    tokens = model.forward_tokens(torch.randn(2, 3, 32, 32))
    assert tokens.shape == (2, 18, 32)
    expected = (model.head(tokens[:, 0]) + model.head_dist(tokens[:, 1])) / 2
    torch.testing.assert_close(model.forward_heads(tokens)["logits"], expected)


Configs = list[dict[str, object]]
CONFIGS: Configs = [
    {},
    {"distilled": True},
    {"representation_size": 12},
    {"global_pool": "avg"},
    {"pos_embed": "none", "act_layer": "gelu_tanh"},
    {"qkv_bias": False, "img_size": (16, 32), "in_chans": 1},
]


@pytest.mark.parametrize("fields", CONFIGS)
def test_every_parameter_changes_the_result(make_model: Callable[..., VisionTransformer], fields):
    """A gradient reaches it, and it is not zero; an average needs all tokens but the prefix."""
    model = make_model(**fields)
    config = model.config
    outputs = model(torch.randn(2, config.in_chans, *config.image_hw))
    assert outputs.shape == (2, 10)
    weights = torch.linspace(0.1, 1, outputs.numel()).reshape(outputs.shape)
    (outputs * weights).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_a_model_without_positions_ignores_the_order_of_patches(make_model):
    """Only positions distinguish patches."""
    model = make_model(pos_embed="none").double()
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    swapped = torch.cat((x[:, :, 8:], x[:, :, :8]), dim=2)
    torch.testing.assert_close(model(x), model(swapped))
    learned = make_model().double()
    assert not torch.allclose(learned(x), learned(swapped))


def test_both_forms_of_gelu_can_be_chosen(make_model):
    """The tanh form differs in the fourth digit."""
    x = torch.randn(2, 3, 32, 32)
    exact, tanh = make_model(), make_model(act_layer="gelu_tanh")
    assert exact.blocks[0].mlp.act.approximate == "none"
    assert tanh.blocks[0].mlp.act.approximate == "tanh"
    assert 0 < (exact(x) - tanh(x)).abs().max() < 1e-2

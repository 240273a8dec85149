"""Settings, learning rate and optimizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vit_export.errors import UsageError
from vit_export.model.vit import create_model
from vit_export.training.recipe import (
    Recipe,
    initial_model,
    learning_rate,
    make_optimizer,
)
from vit_export.variants import get_variant


def rates(recipe: Recipe, steps_per_epoch: int) -> list[float]:
    """The learning rates of all steps of a run."""
    count = recipe.epochs * steps_per_epoch
    return [
        learning_rate(recipe, step=step, steps_per_epoch=steps_per_epoch) for step in range(count)
    ]


def test_the_learning_rate_rises_in_a_line_and_falls_in_a_cosine() -> None:
    """From a first part of the peak, to the peak, to almost nothing; halfway down at half."""
    found = rates(Recipe(epochs=6, warmup_epochs=2, learning_rate=1.0), 10)
    assert found[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    assert found[20] == 1.0
    assert found[40] == pytest.approx(0.5)
    assert found[20:] == sorted(found[20:], reverse=True)
    assert 0 < found[-1] < 0.01


@pytest.mark.parametrize("warmup_epochs", [0, 0.01, 9])
def test_a_warm_up_of_any_length_keeps_below_the_peak(warmup_epochs: float) -> None:
    """None at all, less than a step, or longer than the run."""
    found = rates(Recipe(epochs=3, warmup_epochs=warmup_epochs, learning_rate=0.5), 4)
    assert max(found) == pytest.approx(0.5)
    assert min(found) > 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("optimizer", "adamv"),
        ("learning_rate", 0),
        ("learning_rate", float("nan")),
        ("warmup_epochs", -1),
        ("weight_decay", -0.1),
        ("label_smoothing", 1),
        ("clip_grad_norm", 0),
        ("rotation_degrees", 181),
        ("shift", -0.1),
        ("validation_fraction", 0),
        ("validation_fraction", 1),
        ("patience", -1),
        ("seed", -1),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(name: str, value: Any) -> None:
    """Before any data is read."""
    with pytest.raises(UsageError, match=rf"{name}(=| .adamv.;)"):
        Recipe(**{name: value})


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_only_matrices_decay(optimizer: str) -> None:
    """Every parameter is trained once; biases, norms and embeddings do not decay."""
    model = create_model(get_variant("deit_ti", img_size=32, depth=1, embed_dim=24, num_heads=2))
    recipe = Recipe(optimizer=optimizer, weight_decay=0.3)
    found = make_optimizer(model, recipe)
    assert type(found) is {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]
    decay = {id(p): g["weight_decay"] for g in found.param_groups for p in g["params"]}
    by_name = {name: decay.pop(id(parameter)) for name, parameter in model.named_parameters()}
    assert not decay
    decaying = {name for name, value in by_name.items() if value == 0.3}
    assert decaying == {
        "patch_embed.proj.weight",
        "blocks.0.attn.qkv.weight",
        "blocks.0.attn.proj.weight",
        "blocks.0.mlp.fc1.weight",
        "blocks.0.mlp.fc2.weight",
        "head.weight",
        "head_dist.weight",
    }
    assert {by_name[name] for name in by_name.keys() - decaying} == {0.0}


def test_initial_weights_suit_the_width_of_their_layer() -> None:
    """Xavier-uniform queries, keys, values and layers; LeCun-normal patches."""
    config = get_variant("mnist", depth=2)
    model = initial_model(config, seed=0)
    width = config.embed_dim
    limit = (6 / (width + width)) ** 0.5
    for block in model.blocks:
        for square in (*block.attn.qkv.weight.chunk(3), block.attn.proj.weight):
            assert 0.99 * limit < square.abs().max() <= limit
        for layer in (block.mlp.fc1, block.mlp.fc2):
            assert layer.weight.abs().max().item() == pytest.approx(
                (6 / (5 * width)) ** 0.5, rel=0.01
            )
            assert layer.bias.abs().max() == 0
    assert model.patch_embed.proj.weight.std().item() == pytest.approx(
        config.patch_size**-1, rel=0.1
    )


def test_fresh_weights_depend_on_the_seed_alone() -> None:
    """And leave the global generator alone."""
    config = get_variant("mnist", depth=1)
    torch.manual_seed(9)
    first = initial_model(config, seed=4)
    drawn = torch.rand(2)
    again, other = initial_model(config, seed=4), initial_model(config, seed=5)
    torch.manual_seed(9)
    assert torch.equal(drawn, torch.rand(2))
    name = "blocks.0.attn.qkv.weight"
    assert torch.equal(first.get_parameter(name), again.get_parameter(name))
    assert not torch.equal(first.get_parameter(name), other.get_parameter(name))

"""Training recipe: hyperparameters, initial weights, learning rate and optimizer.

The recipe is that of "An Image Is Worth 16x16 Words" (arXiv 2010.11929, appendix B.1): Adam,
linear warm-up, gradients clipped to norm 1. Cosine decay, label smoothing and AdamW come from DeiT
(arXiv 2012.12877, table 9). Stochastic depth is the config's `drop_path_rate`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from vit_export.errors import UsageError, check_known
from vit_export.model.vit import Attention, VisionTransformer, create_model
from vit_export.variants import ViTConfig

OPTIMIZERS: dict[str, type[torch.optim.Adam]] = {
    "adam": torch.optim.Adam,  # weight_decay is an L2 penalty
    "adamw": torch.optim.AdamW,  # weight_decay is decoupled (arXiv 1711.05101)
}
EMBEDDINGS = ("cls_token", "dist_token", "pos_embed")
RULES: tuple[tuple[str, Callable[[float], bool], str], ...] = (  # no NaN is valid
    ("epochs batch_size", lambda x: x >= 1, "must be at least 1"),
    ("learning_rate clip_grad_norm", lambda x: 0 < x < math.inf, "must be positive"),
    ("warmup_epochs weight_decay patience seed", lambda x: 0 <= x < math.inf, "must be at least 0"),
    ("label_smoothing shift", lambda x: 0 <= x < 1, "must lie in [0, 1)"),
    ("rotation_degrees", lambda x: 0 <= x <= 180, "must lie in [0, 180]"),
    ("validation_fraction", lambda x: 0 < x < 1, "must lie in (0, 1)"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Hyperparameters; the defaults suit a small model that starts from random weights."""

    epochs: int = 40
    batch_size: int = 32
    optimizer: str = "adamw"  # or "adam"
    learning_rate: float = 1e-3  # peak, reached after the warm-up
    warmup_epochs: float = 3.0  # length of the linear warm-up
    weight_decay: float = 0.05  # of matrices; biases, norms and embeddings have none
    label_smoothing: float = 0.1  # share of the target that is spread over all classes
    clip_grad_norm: float = 1.0  # largest norm of the gradient
    rotation_degrees: float = 10.0  # largest random rotation, either way
    shift: float = 0.1  # largest random shift, either way, as a share of the side
    validation_fraction: float = 0.2  # share held out, where there is no validation folder
    patience: int = 0  # stop after this many epochs without a better one; 0 never stops
    seed: int = 0  # of initial weights, validation split, order and augmentation

    def __post_init__(self) -> None:
        check_known("optimizer", self.optimizer, OPTIMIZERS)
        for names, valid, rule in RULES:
            for name in names.split():
                if not valid(getattr(self, name)):
                    raise UsageError(f"{name}={getattr(self, name)}: {rule}")


def initial_model(config: ViTConfig, *, seed: int) -> VisionTransformer:
    """Build a model with random weights for training, in evaluation mode.

    Encoder blocks and patch embedding are initialised as in the paper's own code
    (google-research/vision_transformer, `models_vit.py`): Xavier-uniform and LeCun-normal. These
    scale with the width of the layer; the fixed standard deviation of 0.02, which suits a width of
    768, makes a narrow model learn several times more slowly.
    """
    model = create_model(config, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        for module in model.blocks.modules():
            if isinstance(module, Attention):
                for square in module.qkv.weight.data.chunk(3):  # queries, keys, values
                    nn.init.xavier_uniform_(square)
        kernel = model.patch_embed.proj.weight
        nn.init.trunc_normal_(kernel, std=kernel[0].numel() ** -0.5)
    return model


def learning_rate(recipe: Recipe, *, step: int, steps_per_epoch: int) -> float:
    """Compute the learning rate of a step, counted from 0: warm-up, then cosine decay to zero."""
    warmup = min(recipe.warmup_epochs, recipe.epochs) * steps_per_epoch
    if step < warmup:
        return recipe.learning_rate * min(1.0, (step + 1) / warmup)
    decayed = (step - warmup) / (recipe.epochs * steps_per_epoch - warmup)
    return recipe.learning_rate * (1 + math.cos(math.pi * decayed)) / 2


def make_optimizer(model: VisionTransformer, recipe: Recipe) -> torch.optim.Optimizer:
    """Build the optimizer, without weight decay for biases, norms and embeddings."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        group = others if parameter.ndim < 2 or name in EMBEDDINGS else matrices
        group.append(parameter)
    return OPTIMIZERS[recipe.optimizer](
        [{"params": matrices, "weight_decay": recipe.weight_decay},
         {"params": others, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        fused=True,  # one kernel instead of several per parameter
    )  # fmt: skip

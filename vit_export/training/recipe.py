"""Training recipe: hyperparameters, initial weights, learning rate and optimizer.

The recipe is that of "An Image Is Worth 16x16 Words" (arXiv 2010.11929, appendix B.1): Adam,
linear warm-up, gradients clipped to norm 1. Cosine decay, label smoothing and AdamW come from DeiT
(arXiv 2012.12877, table 9). Stochastic depth is the config's `drop_path_rate`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from vit_export.errors import UsageError, nearest
from vit_export.model.vit import Attention, VisionTransformer, create_model
from vit_export.variants import ViTConfig

OPTIMIZERS: dict[str, type[torch.optim.Adam]] = {
    "adam": torch.optim.Adam,  # weight_decay is an L2 penalty
    "adamw": torch.optim.AdamW,  # weight_decay is decoupled (arXiv 1711.05101)
}
EMBEDDINGS = ("cls_token", "dist_token", "pos_embed")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Hyperparameters; the defaults suit a small model that starts from random weights.

    Attributes:
        epochs: Number of passes over the training images.
        batch_size: Images in one step.
        optimizer: `"adamw"` or `"adam"`.
        learning_rate: Peak learning rate, reached after the warm-up.
        warmup_epochs: Length of the linear warm-up.
        weight_decay: Of matrices; biases, norms and embeddings have none.
        label_smoothing: Share of the target that is spread over all classes.
        clip_grad_norm: Largest norm of the gradient.
        rotation_degrees: Largest random rotation, either way.
        shift: Largest random shift, either way, as a share of the side.
        validation_fraction: Share of the images held out for validation, where the data have no
            validation folder.
        patience: Stop after this many epochs without a better one; 0 never stops.
        seed: Of initial weights, validation split, order and augmentation.

    Raises:
        UsageError: On construction, when a value is outside its range.
    """

    epochs: int = 40
    batch_size: int = 32
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    warmup_epochs: float = 3.0
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    clip_grad_norm: float = 1.0
    rotation_degrees: float = 10.0
    shift: float = 0.1
    validation_fraction: float = 0.2
    patience: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise UsageError(
                f"optimizer={self.optimizer!r}: expected one of "
                f"{', '.join(OPTIMIZERS)}{nearest(self.optimizer, OPTIMIZERS)}"
            )
        for name in ("epochs", "batch_size"):
            self._check(name, getattr(self, name) >= 1, "must be at least 1")
        for name in ("learning_rate", "clip_grad_norm"):
            self._check(name, 0 < getattr(self, name) < math.inf, "must be positive")
        for name in ("warmup_epochs", "weight_decay", "patience", "seed"):
            self._check(name, 0 <= getattr(self, name) < math.inf, "must not be negative")
        for name in ("label_smoothing", "shift"):
            self._check(name, 0 <= getattr(self, name) < 1, "must lie in [0, 1)")
        self._check("rotation_degrees", 0 <= self.rotation_degrees <= 180, "must lie in [0, 180]")
        self._check("validation_fraction", 0 < self.validation_fraction < 1, "must lie in (0, 1)")

    def _check(self, name: str, valid: bool, rule: str) -> None:
        if not valid:
            raise UsageError(f"{name}={getattr(self, name)}: {rule}")


def initial_model(config: ViTConfig, *, seed: int) -> VisionTransformer:
    """Build a model with random weights for training, in evaluation mode.

    Encoder blocks and patch embedding are initialised as in the paper's own code
    (google-research/vision_transformer, `models_vit.py`): Xavier-uniform and LeCun-normal. These
    scale with the width of the layer; the fixed standard deviation of 0.02, which suits a width of
    768, makes a narrow model learn several times more slowly.

    Args:
        config: The architecture.
        seed: Same seed, same weights.
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
    """Compute the learning rate of a step: linear warm-up, then cosine decay to zero.

    Args:
        recipe: Peak, warm-up and number of epochs.
        step: Counted from 0 over the whole run.
        steps_per_epoch: Steps in one epoch.
    """
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

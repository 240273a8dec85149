"""How a model is trained: settings, weights to start from, learning rate, optimizer.

The recipe is that of appendix B.1 of "An Image Is Worth 16x16 Words" (arXiv 2010.11929): Adam,
linear warm-up, gradients clipped to norm 1; with the cosine decay, label smoothing and AdamW
of DeiT (arXiv 2012.12877, table 9). Stochastic depth is the config's `drop_path_rate`.
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
class TrainingSettings:
    """How to train; the defaults suit a small model that starts from random weights.

    Raises:
        UsageError: On construction, when a value cannot work.
    """

    epochs: int = 40
    batch_size: int = 32
    optimizer: str = "adamw"
    learning_rate: float = 1e-3  # the highest, reached after the warm-up
    warmup_epochs: float = 3.0
    weight_decay: float = 0.05  # of matrices; biases, norms and embeddings have none
    label_smoothing: float = 0.1
    clip_grad_norm: float = 1.0
    rotation_degrees: float = 10.0  # largest random rotation either way
    shift: float = 0.1  # largest random shift either way, as a share of the side
    validation_fraction: float = 0.2
    patience: int = 0  # stop after so many epochs without a better one; 0: never
    seed: int = 0

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise UsageError(
                f"optimizer={self.optimizer!r}: expected one of "
                f"{', '.join(OPTIMIZERS)}{nearest(self.optimizer, OPTIMIZERS)}"
            )
        for name in ("epochs", "batch_size"):
            self._demand(name, getattr(self, name) >= 1, "must be at least 1")
        for name in ("learning_rate", "clip_grad_norm"):
            self._demand(name, 0 < getattr(self, name) < math.inf, "must be positive")
        for name in ("warmup_epochs", "weight_decay", "patience", "seed"):
            self._demand(name, 0 <= getattr(self, name) < math.inf, "must not be negative")
        for name in ("label_smoothing", "shift"):
            self._demand(name, 0 <= getattr(self, name) < 1, "must lie in [0, 1)")
        self._demand("rotation_degrees", 0 <= self.rotation_degrees <= 180, "must lie in [0, 180]")
        self._demand("validation_fraction", 0 < self.validation_fraction < 1, "must lie in (0, 1)")

    def _demand(self, name: str, met: bool, rule: str) -> None:
        if not met:
            raise UsageError(f"{name}={getattr(self, name)}: {rule}")


def fresh_model(config: ViTConfig, *, seed: int) -> VisionTransformer:
    """Build a model with random weights to train from, in evaluation mode.

    Encoder blocks and patch embedding start as in the paper's own code
    (google-research/vision_transformer, `models_vit.py`): Xavier-uniform and LeCun-normal.
    These follow the width of the layer; a fixed deviation of 0.02, which suits a width of 768,
    lets a narrow model learn several times more slowly.

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


def learning_rate(settings: TrainingSettings, *, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step: a line up, then half a cosine down to zero.

    Args:
        settings: Peak, warm-up and number of epochs.
        step: Counted from 0 over the whole run.
        steps_per_epoch: Steps in one epoch.
    """
    warmup = min(settings.warmup_epochs, settings.epochs) * steps_per_epoch
    if step < warmup:
        return settings.learning_rate * min(1.0, (step + 1) / warmup)
    done = (step - warmup) / (settings.epochs * steps_per_epoch - warmup)
    return settings.learning_rate * (1 + math.cos(math.pi * done)) / 2


def make_optimizer(model: VisionTransformer, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Build the optimizer, without weight decay for biases, norms and embeddings."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        group = others if parameter.ndim < 2 or name in EMBEDDINGS else matrices
        group.append(parameter)
    return OPTIMIZERS[settings.optimizer](
        [{"params": matrices, "weight_decay": settings.weight_decay},
         {"params": others, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        fused=True,  # one kernel instead of several per parameter
    )  # fmt: skip

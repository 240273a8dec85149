"""Models whose half precision breaks in one place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from vit_export.pipeline.export import ExportResult, export

CHANNEL, MASSIVE = 7, 7e4


@pytest.fixture(scope="session")
def massive_bias(
    tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., object]
) -> ExportResult:
    """4 blocks; from block 3 on, one residual channel is 7e4: a bias that float16 cannot hold."""
    model = make_model(depth=4)
    model.blocks[3].mlp.fc2.bias.data[CHANNEL] = MASSIVE
    return export(model, tmp_path_factory.mktemp("bias") / "massive.onnx")


@pytest.fixture(scope="session")
def massive_product(
    tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., object]
) -> ExportResult:
    """12 blocks, and the same channel from weights that all fit."""
    model = with_massive_product(make_model(depth=12, embed_dim=48, num_heads=3))
    return export(model, tmp_path_factory.mktemp("product") / "massive.onnx")


@pytest.fixture(scope="session")
def shallow_massive_product(
    tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., object]
) -> ExportResult:
    """4 blocks with that channel in the last."""
    model = with_massive_product(make_model(depth=4))
    return export(model, tmp_path_factory.mktemp("shallow") / "massive.onnx")


def with_massive_product(model: nn.Module) -> nn.Module:
    """From block 3 on, one residual channel is 7.5e4: 6e4 from a bias, 1.5e4 from a product."""
    block = model.blocks[3]
    block.mlp.fc2.bias.data[CHANNEL] = 6e4
    block.mlp.fc1.bias.data[5] = 100.0
    block.mlp.fc2.weight.data[CHANNEL, 5] = 150.0
    return model

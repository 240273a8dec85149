"""Wrappers, prefixes and foreign objects of trainers around one network."""

from __future__ import annotations

import argparse
import collections
import pathlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layout_models import SQUARE, timm_vit
from torch import Tensor, nn

from vit_export.checkpoint.load import load_checkpoint
from vit_export.errors import CheckpointError

EXACT = 1e-12
SIZE = SQUARE[0]
Compare = Callable[..., float]
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def original() -> nn.Module:
    """A tiny model of timm's; tests must not change it."""
    torch.manual_seed(0)
    return timm_vit(SIZE).eval()


def prefixed(prefix: str, state: State) -> State:
    """The same tensors under longer names."""
    return {prefix + name: tensor for name, tensor in state.items()}


def other(state: State) -> State:
    """Another network with the same names."""
    return {name: tensor + 1 for name, tensor in state.items()}


def moved_head(name: str) -> Callable[[State], State]:
    """The head under another name, in the names of timm."""
    return lambda state: {key.replace("head.", f"{name}."): value for key, value in state.items()}


ANY = torch.ones(7)
FILES: dict[str, tuple[Callable[[State], Any], tuple[str, ...]]] = {  # and names that are not used
    "averaged": (
        lambda s: {"n_averaged": torch.tensor(5), **prefixed("module.", s)}, ("n_averaged",)
    ),
    "lightning": (
        lambda s: {"state_dict": {"criterion.weight": ANY, **prefixed("model.", s)}},
        ("criterion.weight",),
    ),
    "backbone": (lambda s: prefixed("backbone.", s), ()),
    "nested": (
        lambda s: {"model": {**prefixed("_orig_mod.module.net.encoder.", s), "loss.w": ANY}},
        ("loss.w",),
    ),
    "peft, merged": (lambda s: prefixed("base_model.model.", s), ()),
    "dino": (
        lambda s: {
            "student": prefixed("module.backbone.", other(s)),
            "teacher": {**prefixed("backbone.", s), "head.mlp.0.weight": ANY},
            "epoch": 3,
        },
        ("student", "epoch", "head.mlp.0.weight"),
    ),
    "teacher in names": (
        lambda s: {**prefixed("student.backbone.", other(s)), **prefixed("teacher.backbone.", s)},
        ("student.backbone.cls_token",),
    ),
    "i-jepa": (
        lambda s: {"encoder": prefixed("module.", other(s)), "target_encoder": s},
        ("encoder",),
    ),
    "ema without tensors": (
        lambda s: {"model": s, "ema": {"decay": 0.9, "shadow_params": [ANY]}}, ("ema",)
    ),
    "objects": (
        lambda s: {
            "model": s,
            "args": argparse.Namespace(lr=0.1, out=pathlib.Path("runs"), best=np.float64(0.5)),
            "stats": collections.defaultdict(list, {"loss": [np.float32(1)]}),
            "history": np.zeros(3),
        },
        ("args", "stats", "history"),
    ),
    "head in a Sequential": (moved_head("head.1"), ()),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_the_network_in_a_file_is_found(
    kind: str, original: nn.Module, tmp_path: Path, compare: Compare
) -> None:
    """And what stands beside it is listed as not used."""
    content, unused = FILES[kind]
    path = tmp_path / "x.pth"
    torch.save(content(original.state_dict()), path)
    found = load_checkpoint(path, overrides={"num_heads": SIZE.heads})
    assert {*unused} <= {*found.report.unused}
    assert compare(found.model, timm_like(original)) < EXACT


def timm_like(original: nn.Module) -> nn.Module:
    """A copy, since comparing converts to float64."""
    copy = timm_vit(SIZE).eval()
    copy.load_state_dict(original.state_dict())
    return copy


class Unknown:
    """A class of the user's."""


def test_any_other_object_is_refused(original: nn.Module, tmp_path: Path) -> None:
    """Unpickling it could run code."""
    path = tmp_path / "x.pth"
    torch.save({"model": original.state_dict(), "args": Unknown()}, path)
    with pytest.raises(CheckpointError, match=r"pickle that needs .*Unknown"):
        load_checkpoint(path)


@pytest.mark.parametrize(("content", "reason", "way_out"), [
    (lambda s: {**prefixed("a.", s), **prefixed("b.", s)}, "under the prefixes a., b.",
     "file of their own"),
    (lambda s: {"base_model.model.blocks.0.attn.qkv.lora_A.weight": ANY, **s}, "LoRA adapters",
     "merge_and_unload"),
    (lambda s: {name: torch.empty(0) for name in s}, "ZeRO-3", "zero_to_fp32"),
    (lambda s: {k.replace("head.", f"head.{i}."): v for i in (0, 2) for k, v in s.items()},
     "head.0.weight: in the checkpoint, not in the model", "--module"),
])  # fmt: skip
def test_what_is_no_single_whole_network_is_refused_by_name(
    content: Callable[[State], Any], reason: str, way_out: str, original: nn.Module, tmp_path: Path
) -> None:
    """With the way out."""
    path = tmp_path / "x.pth"
    torch.save(content(original.state_dict()), path)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path, overrides={"num_heads": SIZE.heads})
    assert reason in str(error.value)
    assert way_out in error.value.hint

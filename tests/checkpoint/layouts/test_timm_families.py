"""Families of timm's compared with timm, in float64, and files that a mishap has damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from layout_models import SQUARE, saved, timm_vit
from torch import Tensor, nn

from vit_export.checkpoint.load import load_checkpoint
from vit_export.errors import CheckpointError

EXACT = 1e-12  # relative, in float64
SIZE = SQUARE[0]
Compare = Callable[..., float]
Randomised = Callable[..., nn.Module]

DINOV2 = {"init_values": 0.1, "num_classes": 0}
REGISTERS = {**DINOV2, "reg_tokens": 4, "no_embed_class": True}
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # options of timm, our settings
    "DINOv2": (DINOV2, {}),
    "DINOv2 with registers": (REGISTERS, {}),
    "DINOv2 giant": ({**REGISTERS, "mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU,
                      "mlp_ratio": 4.0}, {}),
    "DeiT III, FlexiViT": ({"no_embed_class": True, "init_values": 0.1}, {}),
    "MAE fine-tuned": ({"global_pool": "avg"}, {}),
    "gap": ({"class_token": False, "global_pool": "avg", "fc_norm": False},
            {"act_layer": "gelu"}),
    "reg4 gap": ({"class_token": False, "global_pool": "avg", "reg_tokens": 4,
                  "no_embed_class": True}, {}),
    "gated": ({"mlp_layer": timm.layers.SwiGLU, "act_layer": nn.SiLU}, {}),
    "CLIP": ({"pre_norm": True}, {"act_layer": "gelu", "norm_eps": 1e-6}),
    "CLIP, quick": ({"pre_norm": True, "act_layer": "quick_gelu"}, {"act_layer": "quick_gelu",
                    "norm_eps": 1e-6}),
    "SigLIP": ({"class_token": False, "global_pool": "map", "act_layer": "gelu_tanh",
                "num_classes": 0}, {"act_layer": "gelu_tanh"}),
    "map with registers": ({"global_pool": "map", "reg_tokens": 2, "num_classes": 0},
                           {"act_layer": "gelu"}),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_of_timm_computes_the_same(
    family: str, tmp_path: Path, randomised: Randomised, compare: Compare
) -> None:
    """Without any file beside it."""
    options, settings = FAMILIES[family]
    original = randomised(timm_vit(SIZE, **options))
    found = load_checkpoint(
        saved(original.state_dict(), tmp_path), overrides={"num_heads": SIZE.heads, **settings}
    )
    assert compare(found.model, original) < EXACT


def flexivit() -> nn.Module:
    """225 positions, which are 15 x 15 patches and none for the class token."""
    return timm_vit(SIZE, img_size=120, no_embed_class=True)


def test_flexivit_is_not_shifted_by_one_position(
    tmp_path: Path, randomised: Randomised, compare: Compare
) -> None:
    """Read as 14 x 16 patches and a class token, every position is wrong, and the gate passes."""
    original = randomised(flexivit())
    found = load_checkpoint(
        saved(original.state_dict(), tmp_path), overrides={"num_heads": SIZE.heads}
    )
    assert (found.config.no_embed_class, found.config.img_size) == (True, 120)
    assert "as 15 x 15 patches" in found.report.assumed["no_embed_class"]
    assert compare(found.model, original) < EXACT


@pytest.mark.parametrize("answer", [True, False])
def test_the_size_that_the_old_hint_named_is_asked_about(
    answer: bool, tmp_path: Path, randomised: Randomised
) -> None:
    """112 x 128 px are 224 patches: a size to resample to, or the size that it was trained on."""
    path = saved(randomised(flexivit()).state_dict(), tmp_path)
    settings = {"num_heads": SIZE.heads, "img_size": "112x128"}
    with pytest.raises(CheckpointError, match="15 x 15 patches or of 14 x 16") as error:
        load_checkpoint(path, overrides=settings)
    assert "no_embed_class" in error.value.hint
    found = load_checkpoint(path, overrides={**settings, "no_embed_class": answer})
    assert bool(found.report.resampled) is answer


def dinov3(**options: Any) -> nn.Module:
    """A small DINOv3 of timm's."""
    return timm.models.eva.Eva(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0,
        init_values=0.1, rope_type="dinov3", rope_temperature=100, rope_rotate_half=True,
        use_rot_pos_emb=True, use_abs_pos_emb=False, num_reg_tokens=4, use_fc_norm=False,
        norm_layer=lambda dim, **dd: nn.LayerNorm(dim, eps=1e-5), **{"qkv_bias": False, **options},
    )  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [{}, {"qkv_bias": True}, {"swiglu_mlp": True, "swiglu_align_to": 8}],
    ids=["plain", "bias", "gated"],
)
def test_dinov3_of_timm_computes_the_same(
    options: dict[str, Any], tmp_path: Path, randomised: Randomised, compare: Compare
) -> None:
    """Rotary positions, registers, no bias of the keys; timm averages the patches."""
    original = randomised(dinov3(**options))
    found = load_checkpoint(
        saved(original.state_dict(), tmp_path), overrides={"num_heads": 2, "img_size": 32}
    )
    assert found.config.rope == "float32"
    assert "class token" in found.report.assumed["global_pool"]
    assert compare(found.model, original) < EXACT


# mishaps


def damaged(
    change: Callable[[dict[str, Tensor]], object], folder: Path, original: nn.Module
) -> str:
    """The error of loading a file in which something was changed."""
    state = dict(original.state_dict())
    change(state)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(saved(state, folder), overrides={"num_heads": SIZE.heads})
    return f"{error.value}\n{error.value.hint}"


def test_a_lost_layer_scale_is_refused(tmp_path: Path) -> None:
    """One of four."""
    said = damaged(
        lambda state: state.pop("blocks.1.ls2.gamma"), tmp_path, timm_vit(SIZE, **DINOV2)
    )
    assert "- blocks.1.ls2.gamma: in the model, not in the checkpoint" in said


def test_a_renamed_tensor_is_refused(tmp_path: Path) -> None:
    """Listed under both names."""
    said = damaged(
        lambda state: state.update(registers=state.pop("reg_token")),
        tmp_path,
        timm_vit(SIZE, **REGISTERS),
    )
    assert "+ registers: in the checkpoint, not in the model" in said


def test_registers_in_the_place_of_the_class_token_are_refused(tmp_path: Path) -> None:
    """Four tokens instead of one."""

    def swap(state: dict[str, Tensor]) -> None:
        state["cls_token"], state["reg_token"] = state["reg_token"], state["cls_token"]

    said = damaged(swap, tmp_path, timm_vit(SIZE, **REGISTERS))
    assert "! cls_token: checkpoint (1, 4, 32), model (1, 1, 32)" in said


@pytest.mark.parametrize("options", [{"pre_norm": True}, {"class_token": False,
                                     "global_pool": "map"}], ids=["CLIP", "SigLIP"])  # fmt: skip
def test_an_activation_that_a_file_does_not_show_is_asked_for(
    options: dict[str, Any], tmp_path: Path
) -> None:
    """quick_gelu taken for gelu passes every comparison with itself."""
    said = damaged(lambda state: None, tmp_path, timm_vit(SIZE, **options))
    assert "--set act_layer=" in said


@pytest.mark.parametrize("hidden", [
    {"init_values": 0.1, "use_abs_pos_emb": True, "attn_type": "rope"},
    {"init_values": 0.1, "use_abs_pos_emb": False, "attn_type": "rope"},
    {"qkv_fused": False},
], ids=["with positions", "without", "EVA-02"])  # fmt: skip
def test_rotary_positions_that_a_file_does_not_show_are_refused(
    hidden: dict[str, Any], tmp_path: Path
) -> None:
    """ROPE-ViT of timm's, whose names are those of other models."""
    original = timm.models.eva.Eva(
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=2,
        use_rot_pos_emb=True,
        **hidden,
    )
    said = damaged(lambda state: None, tmp_path, original)
    assert "rotary positions" in said or "--set rope=VALUE" in said


def test_rotary_positions_of_another_order_compute_something_else(randomised: Randomised) -> None:
    """So the comparisons above would notice it."""
    model = randomised(dinov3())
    x = torch.randn(1, 3, 32, 32)
    before = model(x)
    model.rope.rotate_half = False
    for block in model.blocks:
        block.attn.rotate_half = False
    assert (model(x) - before).abs().max() > 1e-3

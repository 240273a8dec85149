"""Families of transformers compared with transformers, in float64."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from layout_models import saved
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vit_export.checkpoint.load import load_checkpoint
from vit_export.errors import CheckpointError

EXACT = 1e-12  # relative, in float64
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
         "patch_size": 8}  # fmt: skip
WIDE = {**SIZES, "intermediate_size": 64}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9,
        "intermediate_size": 16, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
        "projection_dim": 512}  # fmt: skip
Compare = Callable[..., float]
Randomised = Callable[..., nn.Module]


def built(name: str, **options: Any) -> nn.Module:
    """A small model of transformers, by the name of its class."""
    kind = getattr(transformers, name)
    made: nn.Module = kind(kind.config_class(**options))
    return made


def pooled(output: Any) -> Tensor:
    """What the original gives first: logits, an embedding, the pooled tokens."""
    for name in ("logits", "image_embeds", "pooler_output"):
        if output.get(name) is not None:
            return output[name]
    return output.last_hidden_state[:, 0]


def averaged(output: Any) -> Tensor:
    """The mean of all tokens."""
    return output.last_hidden_state.mean(dim=1)


MODELS: dict[str, tuple[dict[str, Any], Callable[[Any], Tensor]]] = {
    "Dinov2Model": ({**SIZES, "mlp_ratio": 2}, pooled),
    "Dinov2ForImageClassification": ({**SIZES, "use_swiglu_ffn": True, "num_labels": 3}, pooled),
    "Dinov2WithRegistersModel": (SIZES, pooled),
    "Dinov2WithRegistersForImageClassification": ({**SIZES, "num_labels": 3}, pooled),
    "CLIPVisionModel": (WIDE, pooled),
    "CLIPVisionModelWithProjection": ({**WIDE, "hidden_act": "gelu"}, pooled),
    "CLIPForImageClassification": ({"vision_config": WIDE, "num_labels": 3}, pooled),
    "SiglipVisionModel": (WIDE, pooled),
    "SiglipForImageClassification": ({"vision_config": WIDE, "num_labels": 3}, pooled),
    "ViTMSNModel": (WIDE, pooled),
    "IJepaModel": (WIDE, averaged),
    "IJepaForImageClassification": ({**WIDE, "num_labels": 3}, pooled),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_computes_the_same(
    name: str, tmp_path: Path, randomised: Randomised, compare: Compare
) -> None:
    """What the class of transformers computes by default."""
    options, read = MODELS[name]
    original = randomised(built(name, **options))
    original.save_pretrained(tmp_path)
    found = load_checkpoint(tmp_path)
    assert found.report.layout.startswith("huggingface")
    assert "config.json" in found.report.assumed["norm_eps"]
    assert compare(found.model, original, read) < EXACT


@pytest.mark.parametrize("gated", [False, True])
def test_dinov3_computes_the_same(
    gated: bool, tmp_path: Path, randomised: Randomised, compare: Compare
) -> None:
    """Its frequencies are the inverse of Meta's periods, rounded to float32 once more."""
    act = "silu" if gated else "gelu"
    options = {**WIDE, "num_register_tokens": 4, "use_gated_mlp": gated, "hidden_act": act}
    original = randomised(built("DINOv3ViTModel", **options))
    original.save_pretrained(tmp_path)
    found = load_checkpoint(tmp_path)
    assert (found.config.rope, found.config.global_pool) == ("float32", "token")
    assert "timm's averages" in found.report.assumed["global_pool"]
    assert compare(found.model, original, pooled) < 1e-6


def test_a_gate_with_another_activation_is_refused(tmp_path: Path) -> None:
    """DINOv3's own gated models have SiLU; the config's default is GELU."""
    built("DINOv3ViTModel", **WIDE, use_gated_mlp=True).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="hidden_act 'gelu' is not supported; expected silu"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_of_a_whole_model_the_image_tower_is_read(
    kind: str, tmp_path: Path, randomised: Randomised, compare: Compare
) -> None:
    """The text tower is listed as unused."""
    config = getattr(transformers, f"{kind}Config")(vision_config=WIDE, text_config=TEXT)
    original = randomised(getattr(transformers, f"{kind}Model")(config))
    original.save_pretrained(tmp_path)
    found = load_checkpoint(tmp_path)
    assert any(name.startswith("text_model.") for name in found.report.unused)
    assert "logit_scale" in found.report.unused
    assert found.config.projection_dim == (512 if kind == "CLIP" else 0)

    def images(x: Tensor) -> Any:
        return original.double().get_image_features(pixel_values=x)

    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        features, expected = found.model.double()(x), images(x)
    expected = expected if isinstance(expected, Tensor) else expected.pooler_output
    assert (features - expected).abs().max() < EXACT * expected.abs().max()


def test_the_decoder_of_masked_image_modelling_is_unused(tmp_path: Path) -> None:
    """ViTMAEForPreTraining: the encoder without masking."""
    built("ViTMAEForPreTraining", **WIDE).save_pretrained(tmp_path)
    found = load_checkpoint(tmp_path)
    assert any(name.startswith("decoder.") for name in found.report.unused)
    assert found.config.norm_eps == 1e-12


def test_an_activation_that_no_file_states_is_asked_for(tmp_path: Path) -> None:
    """Weights of CLIP without config.json."""
    path = saved(built("CLIPVisionModel", **WIDE).state_dict(), tmp_path)
    with pytest.raises(CheckpointError, match="do not show act_layer") as error:
        load_checkpoint(path, overrides={"num_heads": 4})
    assert "--set act_layer=VALUE" in error.value.hint
    settings = {"num_heads": 4, "act_layer": "quick_gelu"}
    assert load_checkpoint(path, overrides=settings).config.act_layer == "quick_gelu"


def test_a_config_of_another_kind_of_model_is_not_ignored_silently(tmp_path: Path) -> None:
    """The report says so, and the image preparation is read all the same."""
    built("ViTModel", **WIDE).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "my_vit"}))
    processor = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1], "size": {"height": 32,
                 "width": 32}}  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    found = load_checkpoint(tmp_path, overrides={"num_heads": 4})
    assert "'my_vit' is none of vit, deit" in found.report.assumed["config.json"]
    assert found.preprocess.mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    ("name", "options", "lost"),
    [
        (
            "CLIPVisionModelWithProjection",
            {**WIDE, "projection_dim": 8},
            "visual_projection.weight",
        ),
        ("Dinov2WithRegistersModel", SIZES, "embeddings.register_tokens"),
        ("DINOv3ViTModel", {**WIDE, "num_register_tokens": 4}, "embeddings.register_tokens"),
    ],
)
def test_a_lost_part_that_config_json_states_is_refused(
    name: str, options: dict[str, Any], lost: str, tmp_path: Path
) -> None:
    """The tensors alone would be those of a model without it."""
    built(name, **options).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    save_file({n: t for n, t in state.items() if n != lost}, path, metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"! (projection_dim|reg_tokens): file 0, config.json"
    ):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("lost", "what"),
    [
        ("encoder.layer.1.layer_scale2.lambda1", "- blocks.1.ls2.gamma"),
        ("encoder.layer.0.mlp.weights_in.bias", "- blocks.0.mlp.fc1.bias"),
        ("encoder.layer.0.attention.attention.key.bias", "- blocks.0.attn.qkv.bias"),
    ],
)
def test_a_lost_tensor_is_refused(lost: str, what: str, tmp_path: Path) -> None:
    """Under our name and the name that it lacks."""
    built("Dinov2Model", **SIZES, use_swiglu_ffn=True).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    del state[lost]
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tmp_path)
    assert what in str(error.value)

"""Which published models load, and which are refused and why: a table of timm, HF and torchvision.

`census.txt` says which models load, so that a change shows in a diff. To write it anew, set
UPDATE_CENSUS=1.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from originals import distance, perturb
from torch import Tensor, nn

from vit_export.checkpoint.architecture import PREPARATION
from vit_export.checkpoint.load import Loaded, load_checkpoint
from vit_export.checkpoint.metadata import MODULE_HINT, read_metadata
from vit_export.checkpoint.published import published_preparation
from vit_export.checkpoint.tensor_files import TensorFile
from vit_export.errors import CheckpointError

FAMILIES = ["vit_*", "deit*", "flexivit_*", "beit*", "eva*"]
SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
HUGGING_FACE = [
    "ViTForImageClassification", "ViTModel", "DeiTForImageClassification",
    "DeiTForImageClassificationWithTeacher", "DeiTModel", "ViTMAEForPreTraining", "ViTMSNModel",
    "BeitForImageClassification", "Data2VecVisionModel", "Dinov2ForImageClassification",
    "Dinov2WithRegistersModel", "DINOv3ViTModel", "IJepaModel", "CLIPVisionModel",
    "SiglipVisionModel", "YolosModel",
]  # fmt: skip


def in_memory(name: str, state: Mapping[str, Tensor]) -> TensorFile:
    """A state dict as a file that lies in no folder."""
    return TensorFile(
        path=Path("/nonexistent") / name,
        parts=(),
        tensors={name: tensor.to("meta") for name, tensor in state.items()},
        read=state.__getitem__,
    )


def load(file: TensorFile, *, num_heads: int, img_size: Any = None) -> Loaded:
    """Load a file in memory; the model stays without data where the file has none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vit_export.checkpoint.load.open_tensors", lambda path: file)
        if file.read(next(iter(file.tensors))).is_meta:
            patch.setattr("vit_export.checkpoint.load.fill", lambda *_: None)
        settings = {"num_heads": num_heads, **({"img_size": img_size} if img_size else {})}
        return load_checkpoint(file.path, overrides=settings)


def outcome(
    name: str, model: nn.Module, read: Any = lambda output: output, encoder: Any = None
) -> str:
    """Whether a model loads and then computes the same in float64, or why it is refused.

    `encoder` is the part of it that is compared, by default all.
    """
    file = in_memory(name, model.state_dict())
    positions = any("pos" in tensor for tensor in file.tensors)  # else nothing shows the size
    size = None if positions else getattr(getattr(model, "patch_embed", None), "img_size", None)
    try:
        loaded = load(file, num_heads=4, img_size=size)
    except CheckpointError as error:
        parts = re.findall(r"  \+ (.*?): ", error.message) if error.hint == MODULE_HINT else []
        reason = error.message.splitlines()[0].replace(str(file.path), "it")
        reason = re.sub(r": its \d+ tensors are named.*", "", reason.partition("it: ")[2] or reason)
        return "refused: " + ("; ".join(parts) or reason)
    taken = getattr(getattr(model, "patch_embed", None), "img_size", loaded.config.image_hw)
    if taken != loaded.config.image_hw:
        return f"loads for {loaded.config.img_size} px, the original takes {taken[0]}"
    if next(model.parameters()).is_meta:
        return "loads exactly"  # compared in test_rules.py
    x = torch.randn(1, loaded.config.in_chans, *loaded.config.image_hw, dtype=torch.float64)
    with torch.no_grad():
        error = distance(loaded.model.double()(x), read((encoder or model).double()(x)))
    if 1e-12 < error < 1e-6 and loaded.config.rope != "none":
        return "loads, with rotary positions rounded to float32"  # the original's are float64 here
    return "loads exactly" if error < 1e-12 else "loads, but computes something else"


def timm_model(name: str) -> nn.Module:
    """A named model with two narrow blocks, or on the meta device where it cannot be narrow."""
    try:
        model = timm.create_model(name, depth=2, embed_dim=64, num_heads=4, num_classes=5)
    except (AssertionError, TypeError, ValueError, RuntimeError):
        with torch.device("meta"):
            return timm.create_model(name)
    return perturb(model)


def timm_outcomes() -> dict[str, str]:
    """Every named model of the families."""
    return {f"timm {name}": outcome(name, timm_model(name)) for name in timm.list_models(FAMILIES)}


def huggingface_outcomes() -> dict[str, str]:
    """A small model of every class."""
    outcomes = {}
    for name in HUGGING_FACE:
        kind = getattr(transformers, name)
        sizes = {"image_size": [32, 32]} if name == "YolosModel" else {}
        unmasked = {"mask_ratio": 0.0} if "MAE" in name else {}
        model = perturb(kind(kind.config_class(**{**SMALL, **sizes, **unmasked})))
        encoder = model.vit if name == "ViTMAEForPreTraining" else model
        outcomes[f"transformers {name}"] = outcome(name, model, read_huggingface, encoder)
    return outcomes


def read_huggingface(output: Any) -> Tensor:
    """Logits, or the features of a model without head."""
    if "logits" in output:
        return output.logits
    pooled = output.get("pooler_output")
    if pooled is None and output.last_hidden_state.shape[1] == 16:  # no class token (I-JEPA)
        return output.last_hidden_state.mean(dim=1)
    return output.last_hidden_state[:, 0] if pooled is None else pooled


def torchvision_outcomes() -> dict[str, str]:
    """Every named model, at its own size and depth."""
    outcomes = {}
    for name in torchvision.models.list_models(include="vit_*"):
        with torch.device("meta"):
            outcomes[f"torchvision {name}"] = outcome(name, torchvision.models.get_model(name))
    return outcomes


OUTCOMES: dict[str, Callable[[], dict[str, str]]] = {
    "timm": timm_outcomes,
    "transformers": huggingface_outcomes,
    "torchvision": torchvision_outcomes,
}


@pytest.mark.parametrize("library", [
    pytest.param("timm", marks=pytest.mark.slow), "transformers", "torchvision",
])  # fmt: skip
def test_published_models_load_or_are_refused_as_the_table_says(library: str) -> None:
    """One line for each model."""
    check_table("census.txt", library, OUTCOMES[library]())


def check_table(file: str, library: str, outcomes: Mapping[str, str]) -> None:
    """Compare with the lines of a library in a table, or write them anew."""
    path = Path(__file__).with_name(file)
    table = path.read_text().splitlines() if path.exists() else []
    lines = [f"{name}: {what}" for name, what in outcomes.items()]
    if os.environ.get("UPDATE_CENSUS"):
        others = [line for line in table if not line.startswith(f"{library} ")]
        path.write_text("".join(f"{line}\n" for line in sorted([*others, *lines])))
    else:
        assert sorted(lines) == [line for line in table if line.startswith(f"{library} ")]


def loadable_timm_weights() -> list[str]:
    """Published weights, e.g. `"vit_base_patch16_224.dino"`, of the models that load exactly."""
    table = Path(__file__).with_name("census.txt").read_text().splitlines()
    exact = {line.removesuffix(": loads exactly").removeprefix("timm ") for line in table}
    return [name for name in timm.list_pretrained(FAMILIES) if name.split(".")[0] in exact]


def test_the_config_json_of_timm_gives_the_preparation_of_all_published_weights(
    tmp_path: Path,
) -> None:
    """Mean, standard deviation, crop and interpolation, as in timm's repositories."""
    names = loadable_timm_weights()
    assert len(names) > 50
    for name in names:
        cfg = timm.get_pretrained_cfg(name)
        about = {"architecture": name.split(".")[0], "pretrained_cfg": cfg.to_dict()}
        (tmp_path / "config.json").write_text(json.dumps(about))
        metadata = read_metadata(tmp_path, layout="timm")
        fields = metadata.fields["config.json"]
        assert {field: fields[field] for field in PREPARATION} == {
            field: getattr(cfg, field) for field in PREPARATION
        }, name


def test_published_files_of_torchvision_are_prepared_as_by_torchvision() -> None:
    """Their shapes do not show whether images are resized to 224, 242 or 256 px, and how."""
    for model in torchvision.models.list_models(include="vit_*"):
        for weights in torchvision.models.get_model_weights(model):
            preset, name = weights.transforms(), weights.url.rpartition("/")[2]
            assert published_preparation(digits_of(name)) == {
                name: {
                    "mean": tuple(preset.mean),
                    "std": tuple(preset.std),
                    "crop_pct": preset.crop_size[0] / preset.resize_size[0],
                    "interpolation": preset.interpolation.value,
                }
            }


def digits_of(name: str) -> str:
    """The SHA-256 of a published file, as far as its name shows it."""
    return name.removesuffix(".pth").rpartition("-")[2].ljust(64, "0")


def test_published_files_of_deit_are_prepared_as_by_their_makers() -> None:
    """Bare files of DeiT have the shapes of ViT, and other statistics."""
    for model in timm.list_pretrained("deit_*"):
        cfg = timm.get_pretrained_cfg(model)
        name = cfg.url.rpartition("/")[2]
        (fields,) = published_preparation(digits_of(name)).values()
        assert fields == {field: getattr(cfg, field) for field in fields}
        assert {*fields, "crop_mode"} == {*PREPARATION}


def test_no_preparation_is_invented() -> None:
    """ViT, DeiT, DINO and MAE share their shapes, and prepare images in different ways."""
    file = in_memory("x", timm_model("vit_base_patch16_224").state_dict())
    assert not load(file, num_heads=4).preprocess.known

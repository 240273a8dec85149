"""What the JSON files beside a checkpoint say: architecture, image preparation, labels.

`config.json` of the Hugging Face libraries (with `preprocessor_config.json`), or of timm.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vit_export.errors import CheckpointError
from vit_export.variants import VARIANTS

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
}
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """What was read beside the weights.

    Attributes:
        source: Name of the file that was read; empty where there was none.
        fields: Config fields.
        crop_mode: As `Preprocess.crop_mode`.
        labels: Class names; empty when the file has generic ones only.
        notes: What could not be taken over as it stands.
    """

    source: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    crop_mode: str = "center"
    labels: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)


def read_sidecar(folder: Path, *, layout: str) -> Sidecar:
    """Read the JSON files that belong to a layout.

    Args:
        folder: Where the weights lie.
        layout: Only `huggingface` and `timm` have such files; another's are left alone.

    Raises:
        CheckpointError: A file that is no JSON, or an architecture that ours is not.
    """
    readers: dict[str, Callable[[Path, dict[str, Any]], Sidecar | None]] = {
        "huggingface": _hugging_face,
        "timm": _timm,
    }
    path = folder / "config.json"
    if layout not in readers or not path.is_file():
        return Sidecar()
    try:
        return readers[layout](path, _json(path)) or Sidecar()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path} cannot be understood ({error!r}); mend it, or move it away to load the "
            "weights without it"
        ) from error


def _json(path: Path) -> dict[str, Any]:
    data = json.loads(path.read_text("utf-8"))
    if not isinstance(data, dict):
        raise ValueError("expected a JSON object")
    return data


def _hugging_face(path: Path, config: dict[str, Any]) -> Sidecar | None:
    if config.get("model_type") not in ("vit", "deit"):
        return None
    activation = config.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise CheckpointError(
            f"{path}: hidden_act {activation!r} is not known to vit-export, which has "
            f"{', '.join(ACTIVATIONS)}; export the module itself with --module pkg:factory"
        )
    if config.get("pooler_act", "tanh") != "tanh":
        raise CheckpointError(
            f"{path}: pooler_act {config['pooler_act']!r}; the pre-logits layer of vit-export "
            "has tanh only; export the module itself with --module pkg:factory"
        )
    fields: dict[str, Any] = {
        "num_heads": config.get("num_attention_heads", 12),
        "norm_eps": config.get("layer_norm_eps", 1e-12),
        "act_layer": ACTIVATIONS[activation],
        "img_size": _size(config.get("image_size", 224)),
    }
    if "hidden_size" in config:
        fields["embed_dim"] = config["hidden_size"]
        if "intermediate_size" in config:
            fields["mlp_ratio"] = config["intermediate_size"] / config["hidden_size"]
    for theirs, ours in (
        ("num_hidden_layers", "depth"),
        ("num_channels", "in_chans"),
        ("qkv_bias", "qkv_bias"),
    ):
        if theirs in config:
            fields[ours] = config[theirs]
    if "patch_size" in config:
        fields["patch_size"] = _square(config["patch_size"])
    processor_path = path.with_name("preprocessor_config.json")
    processor = _json(processor_path) if processor_path.is_file() else {}
    crop_mode, preparation, notes = _processor(processor) if processor else ("center", {}, {})
    return Sidecar(
        source="config.json",
        fields={**fields, **preparation},
        crop_mode=crop_mode,
        labels=_id2label(config.get("id2label") or {}),
        notes=notes,
    )


def _processor(processor: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Crop mode, config fields and notes of a preprocessor_config.json.

    Its arithmetic is (factor * x - mean) / std of x in [0, 255]; ours starts from x / 255.
    """
    factor = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1.0
    scale = 1.0 if abs(factor * 255 - 1) < 1e-9 else factor * 255
    fields: dict[str, Any] = {"interpolation": RESAMPLE[processor.get("resample", 2)]}
    if processor.get("do_normalize", True):
        fields["mean"] = tuple(value / scale for value in processor["image_mean"])
        fields["std"] = tuple(value / scale for value in processor["image_std"])
    else:
        channels = len(processor.get("image_mean", (0, 0, 0)))
        fields["mean"], fields["std"] = (0.0,) * channels, (1 / scale,) * channels
    size = processor.get("size", 224)
    if not processor.get("do_center_crop", False):
        keeps_aspect = isinstance(size, dict) and "shortest_edge" in size
        return ("center" if keeps_aspect else "squash"), {**fields, "crop_pct": 1.0}, {}
    crop, resized = _size(processor.get("crop_size", size)), _size(size)
    fields["crop_pct"] = min(1.0, min(_both(crop)) / min(_both(resized)))
    if isinstance(size, dict) and "shortest_edge" in size:
        return "center", fields, {}
    return "center", fields, {
        "crop_mode": f"center; preprocessor_config.json squashes to {resized} px before it crops, "
        "vit-export keeps the aspect: pictures that are not square are seen differently"
    }  # fmt: skip


def _size(value: Any) -> int | tuple[int, int]:
    """A size in pixels, however it is written: 224, [224, 160], {"height": ..., "width": ...}."""
    if isinstance(value, Mapping):
        if "shortest_edge" in value:
            return int(value["shortest_edge"])
        value = (value["height"], value["width"])
    if isinstance(value, int):
        return value
    height, width = value
    return height if height == width else (height, width)


def _both(size: int | tuple[int, int]) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


def _square(value: Any) -> int:
    size = _size(value)
    if isinstance(size, tuple):
        raise ValueError(f"patches of {size} px, where vit-export has square ones only")
    return size


def _id2label(id2label: Mapping[str, str]) -> tuple[str, ...]:
    labels = {int(index): str(name) for index, name in id2label.items()}
    if all(name == f"LABEL_{index}" for index, name in labels.items()):
        return ()
    return tuple(labels[index] for index in range(len(labels)))


def _timm(path: Path, config: dict[str, Any]) -> Sidecar | None:
    if "pretrained_cfg" not in config and "architecture" not in config:
        return None
    cfg: dict[str, Any] = config.get("pretrained_cfg") or {}
    arguments: dict[str, Any] = config.get("model_args") or {}
    fields: dict[str, Any] = {
        name: arguments[name] for name in ("num_heads", "qkv_bias") if name in arguments
    }
    architecture = str(config.get("architecture", "")).split(".")[0]
    if "num_heads" not in fields and architecture in VARIANTS:
        fields["num_heads"] = VARIANTS[architecture].num_heads
    pool = config.get("global_pool") or arguments.get("global_pool") or "token"
    if pool not in ("token", "avg"):
        raise CheckpointError(
            f"{path}: global_pool {pool!r} is not known to vit-export, which has token and avg; "
            "export the module itself with --module pkg:factory"
        )
    fields["global_pool"] = pool
    size = arguments.get("img_size") or cfg.get("input_size", (0, 0))[1:]
    if size and size != (0,):
        fields["img_size"] = _size(size)
    for name in ("mean", "std"):
        if name in cfg:
            fields[name] = tuple(cfg[name])
    for name in ("crop_pct", "interpolation"):
        if name in cfg:
            fields[name] = cfg[name]
    labels = config.get("label_names") or cfg.get("label_names") or ()
    mode = cfg.get("crop_mode", "center")
    return Sidecar(
        source="config.json",
        fields=fields,
        crop_mode="squash" if mode == "squash" else "center",
        labels=tuple(map(str, labels)),
        notes={"crop_mode": f"center; config.json asks for {mode!r}"}
        if mode not in ("center", "squash")
        else {},
    )

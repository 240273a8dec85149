"""JSON files beside a checkpoint: architecture, image preparation and labels.

Hugging Face writes `config.json` and `preprocessor_config.json`, timm a `config.json` of its own.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from vit_export.artifact.labels import parse_labels
from vit_export.artifact.open_file import read_text
from vit_export.artifact.vocabulary import Activation
from vit_export.checkpoint.layouts.timm import UNSUPPORTED_ARCHITECTURES, architecture_fields
from vit_export.errors import CheckpointError
from vit_export.variants import CHOICES, VARIANTS

CARD = "README.md"
OPENCLIP_CONFIG = "open_clip_config.json"
CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    **dict.fromkeys(("gelu", "gelu_python"), "gelu"),
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_tanh"), "gelu_tanh"),
}
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
SCORES: dict[str, Activation] = {"multi_label_classification": "sigmoid", "regression": "none"}
MODULE_HINT = "export the module itself with --module package.module:factory"


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """Contents of the JSON files beside the weights."""

    # config fields by the name of their file; None where it does not state one
    fields: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    activation: Activation = "softmax"
    labels: tuple[str, ...] = ()  # empty where the file has generic ones only
    license: str = ""  # of the weights
    projection_dim: int = 0  # width of the projection that timm's CLIP may have as its head
    notes: Mapping[str, str] = field(default_factory=dict)  # settings that cannot be followed


def read_metadata(folder: Path, *, layout: str) -> Metadata:
    """Read the JSON files and the card in a folder."""
    metadata = _read_json_files(folder, layout=layout)
    named = _card_license(folder / CARD) or metadata.license
    return dataclasses.replace(metadata, license=named)


def _card_license(card: Path) -> str:
    """Licence in the YAML header of a repository's card; "" where there is none."""
    if not card.exists():
        return ""
    header = re.match(
        r"---\r?\n(.*?)\n---", read_text(card, what="card", error=CheckpointError), re.S
    )
    fields: dict[str, str] = dict(
        re.findall(r"^(license\w*): *['\"]?([\w.-]+)", header[1] if header else "", re.M)
    )
    license = fields.get("license", "")
    return fields.get("license_name", license) if license == "other" else license


def _read_json_files(folder: Path, *, layout: str) -> Metadata:
    """Only `huggingface`, `timm` and `openclip` write such files."""
    if layout in ("openclip", "timm") and (folder / OPENCLIP_CONFIG).exists():
        return _open_clip(_read(folder / OPENCLIP_CONFIG))
    path = folder / CONFIG
    hugging_face = layout.startswith("huggingface")
    if not (hugging_face or layout == "timm") or not path.exists():
        return Metadata()
    config = _read(path)
    if hugging_face:
        return _hugging_face(config)
    if layout == "timm" and ("pretrained_cfg" in config.data or "architecture" in config.data):
        return _timm(config)
    return Metadata()


@dataclass(frozen=True)
class _Json:
    """A JSON object; errors name its file and the wrong field."""

    path: Path
    data: Mapping[str, Any]
    prefix: str = ""  # of fields in messages

    def get(self, name: str, kind: Any, default: Any = None) -> Any:
        """The value of a field, checked to be of a type."""
        try:
            return msgspec.convert(self.data.get(name, default), kind)
        except msgspec.ValidationError as error:
            message = re.sub(r" - at `\$(.*)`$", r" at \1", str(error)).lower()
            raise self.error(f"{self.prefix}{name}: {message}") from error

    def object(self, name: str) -> _Json:
        """The object in a field; an empty one where it is null or missing."""
        return _Json(self.path, self.get(name, dict[str, Any] | None) or {}, f"{name}.")

    def size(self, name: str, default: Any = None) -> Any:
        """Pixels from `224`, `[224, 160]` or `{"height": ..., "width": ...}`."""
        value = self.get(name, int | tuple[int, int] | dict[str, int | None] | None, default)
        if isinstance(value, dict):
            value = value.get("shortest_edge") or (value.get("height"), value.get("width"))
        height, width = value if isinstance(value, tuple) else (value, value)
        if value is not None and not (height and width and min(height, width) > 0):
            raise self.error(f"{self.prefix}{name}: expected a positive size, got {value}")
        return height if height == width else (height, width)

    def error(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: {what}",
            hint=f"fix {self.path.name}, or remove it to load the weights without it",
        )

    def check_supported(self, name: str, value: Any, supported: Iterable[str]) -> None:
        """Raise CheckpointError where `VisionTransformer` lacks the choice in a field."""
        if value not in supported:
            raise CheckpointError(
                f"{self.path}: {name} {value!r} is not supported; expected {', '.join(supported)}",
                hint=MODULE_HINT,
            )


def _read(path: Path) -> _Json:
    text = read_text(path, what="JSON file", error=CheckpointError)
    try:
        return _Json(path, msgspec.convert(json.loads(text), dict[str, Any]))
    except (ValueError, msgspec.ValidationError) as error:
        raise _Json(path, {}).error(f"is no JSON object ({error})") from error


@dataclass(frozen=True)
class _Defaults:
    """What a field of a config.json means where it is missing, by its model_type."""

    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    num_attention_heads: int = 12
    num_register_tokens: int | None = None  # None: it has no such field


_CLIP, _SIGLIP = _Defaults("quick_gelu", 1e-5), _Defaults("gelu_pytorch_tanh", 1e-6)
MODEL_TYPES = {
    **dict.fromkeys(("vit", "deit", "vit_mae", "ijepa"), _Defaults()),
    "vit_msn": _Defaults(layer_norm_eps=1e-6),
    "dinov2": _Defaults(layer_norm_eps=1e-6, num_register_tokens=0),
    "dinov2_with_registers": _Defaults(layer_norm_eps=1e-6, num_register_tokens=4),
    "dinov3_vit": _Defaults(layer_norm_eps=1e-5, num_attention_heads=6, num_register_tokens=0),
    **dict.fromkeys(("clip", "clip_vision_model"), _CLIP),
    **dict.fromkeys(("siglip", "siglip_vision_model"), _SIGLIP),
}


def _hugging_face(config: _Json) -> Metadata:
    whole, model_type = config, config.get("model_type", str | None) or ""
    preparation = _processor(config, channels=config.get("num_channels", int | None) or 3)
    if model_type not in MODEL_TYPES:
        return Metadata(
            fields={PROCESSOR: preparation},
            notes={CONFIG: f"not used: its model_type {model_type!r} is none of "
                   f"{', '.join(MODEL_TYPES)}"},
        )  # fmt: skip
    defaults = MODEL_TYPES[model_type]
    classes = config.get("architectures", list[str] | None) or [""]
    projects = classes[0] in ("CLIPModel", "CLIPVisionModelWithProjection")
    registers = defaults.num_register_tokens
    if registers is not None:
        registers = config.get("num_register_tokens", int, registers)
    projection_dim = config.get("projection_dim", int | None) if projects else None
    if model_type in ("clip", "siglip"):
        config = config.object("vision_config")
    activation = config.get("hidden_act", str, defaults.hidden_act)
    gated = config.get("use_gated_mlp", bool, False)
    config.check_supported("hidden_act", activation, ["silu"] if gated else ACTIVATIONS)
    config.check_supported("pooler_act", config.get("pooler_act", str, "tanh"), ["tanh"])
    patch_size = config.size("patch_size")
    if isinstance(patch_size, tuple):
        config.check_supported("patch_size", patch_size, ["square patches"])
    width = config.get("hidden_size", int | None)
    hidden = config.get("intermediate_size", int | None)
    channels = config.get("num_channels", int | None)
    fields = {
        "num_heads": config.get("num_attention_heads", int, defaults.num_attention_heads),
        "norm_eps": config.get("layer_norm_eps", float, defaults.layer_norm_eps),
        "act_layer": ACTIVATIONS.get(activation),
        "img_size": config.size("image_size", 224),
        "patch_size": patch_size,
        "embed_dim": width,
        "mlp_ratio": hidden / width if hidden and width else None,
        "depth": config.get("num_hidden_layers", int | None),
        "in_chans": channels,
        "qkv_bias": config.get("qkv_bias", bool | None),
        "projection_dim": projection_dim,
        "reg_tokens": registers,
        "rope_theta": config.get("rope_theta", float | None),
    }
    return Metadata(
        fields={CONFIG: fields, PROCESSOR: preparation},
        activation=SCORES.get(whole.get("problem_type", str | None) or "", "softmax"),
        labels=_labels(whole),
    )


def _processor(config: _Json, *, channels: int) -> dict[str, Any]:
    """Config fields of the preprocessor_config.json beside a config.json."""
    path = config.path.with_name(PROCESSOR)
    return _preparation(_read(path), channels=channels) if path.exists() else {}


def _labels(config: _Json) -> tuple[str, ...]:
    """Class names of `id2label` or `label2id`; none where they are LABEL_0, LABEL_1, ..."""
    key = next((key for key in ("id2label", "label2id") if config.data.get(key)), None)
    if key is None:
        return ()
    try:
        labels = parse_labels({key: config.data[key]})
    except ValueError as error:
        raise config.error(f"{key}: {error}") from error
    return () if all(name == f"LABEL_{n}" for n, name in enumerate(labels)) else labels


def processor_preparation(
    fields: Mapping[str, Any], *, folder: Path, channels: int
) -> dict[str, Any]:
    """Config fields of an image processor, from the fields of its file."""
    return _preparation(_Json(folder / PROCESSOR, fields), channels=channels)


def _preparation(processor: _Json, *, channels: int) -> dict[str, Any]:
    """Config fields of a preprocessor_config.json.

    It computes (rescale_factor * x - mean) / std of x in [0, 255], `Preprocess` of x / 255.
    """
    factor = processor.get("rescale_factor", float, 1 / 255)
    scale = factor * 255 if processor.get("do_rescale", bool | None, True) else 255.0
    if scale <= 0:
        raise processor.error("rescale_factor: expected a positive number")
    scale = 1.0 if abs(scale - 1) < 1e-9 else scale
    if processor.get("do_normalize", bool | None, True):
        mean, std = (processor.get(name, list[float]) for name in ("image_mean", "image_std"))
    else:
        mean, std = [0.0] * channels, [1.0] * channels
    size = crop = processor.size("size") or 224
    if processor.get("do_center_crop", bool | None):
        crop = processor.size("crop_size") or size
    resized, cropped = (min(s) if isinstance(s, tuple) else s for s in (size, crop))
    share = min(1.0, cropped / resized)
    if math.floor(cropped / share) < resized:  # despite rounding, floor(crop / share) is the size
        share = math.nextafter(share, 0)
    raw = processor.data.get("size")
    keeps_aspect = isinstance(raw, Mapping) and "shortest_edge" in raw
    return {
        "mean": tuple(value / scale for value in mean),
        "std": tuple(value / scale for value in std),
        "interpolation": RESAMPLE[processor.get("resample", Literal[0, 1, 2, 3], 2)],
        "crop_pct": share,
        "crop_mode": "center" if keeps_aspect else "squash",
    }


def _open_clip(config: _Json) -> Metadata:
    """Read the config.json of OpenCLIP; a tower of timm's has no fields there but its name."""
    model, preparation = config.object("model_cfg"), config.object("preprocess_cfg")
    tower = _Json(config.path, model.get("vision_cfg", dict[str, Any], {}), "vision_cfg.")
    width = tower.get("width", int | None)
    mode = preparation.get("resize_mode", Literal["shortest", "squash"] | None)
    fields: dict[str, Any] = {
        "img_size": tower.size("image_size"),
        "mean": preparation.get("mean", tuple[float, ...] | None),
        "std": preparation.get("std", tuple[float, ...] | None),
        "interpolation": preparation.get("interpolation", str | None),
        "crop_mode": "squash" if mode == "squash" else "center",
        "crop_pct": 1.0,
    }
    if name := tower.get("timm_model_name", str | None):
        fields |= architecture_fields(name)
    else:
        fields |= {
            "act_layer": "quick_gelu" if model.get("quick_gelu", bool, False) else "gelu",
            "num_heads": width // tower.get("head_width", int, 64) if width else None,
        }
    return Metadata(fields={OPENCLIP_CONFIG: fields})


def _timm(config: _Json) -> Metadata:
    pretrained, arguments = config.object("pretrained_cfg"), config.object("model_args")
    architecture = (config.get("architecture", str | None) or "").split(".")[0]
    if UNSUPPORTED_ARCHITECTURES.match(architecture):
        raise CheckpointError(
            f"{config.path}: architecture {architecture!r} is not supported", hint=MODULE_HINT
        )
    not_shown = architecture_fields(architecture)
    tag, projection_dim = pretrained.get("tag", str | None) or "", 0
    if re.match("vit_.*_clip_", architecture) and "ft_" not in tag:
        projection_dim = pretrained.get("num_classes", int | None) or 0
    pools = (source.get("global_pool", str | None) for source in (config, arguments))
    pool = next(filter(None, pools), not_shown.get("global_pool"))
    if pool is not None:
        config.check_supported("global_pool", pool, ["token", "avg", "map"])
    variant = VARIANTS.get(architecture)
    input_size = pretrained.get("input_size", tuple[int, int, int] | None)
    mode = pretrained.get("crop_mode", str | None)
    known = mode in (None, *CHOICES["crop_mode"])
    names = tuple[str, ...] | None
    fields = {
        **not_shown,
        "num_heads": arguments.get("num_heads", int | None) or (variant and variant.num_heads),
        "qkv_bias": arguments.get("qkv_bias", bool | None),
        "global_pool": pool,
        "img_size": arguments.size("img_size") or (input_size and input_size[1:]),
        "mean": pretrained.get("mean", tuple[float, ...] | None),
        "std": pretrained.get("std", tuple[float, ...] | None),
        "crop_pct": pretrained.get("crop_pct", float | None),
        "crop_mode": mode if known else "center",
        "interpolation": pretrained.get("interpolation", str | None),
    }
    return Metadata(
        fields={CONFIG: fields},
        license=pretrained.get("license", str | None) or "",
        projection_dim=projection_dim,
        labels=config.get("label_names", names) or pretrained.get("label_names", names) or (),
        notes={} if known else {"crop_mode": f"center; {CONFIG} has {mode!r}"},
    )

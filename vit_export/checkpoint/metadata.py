"""JSON files beside a checkpoint: architecture, image preparation and labels.

Hugging Face writes `config.json` and `preprocessor_config.json`, timm a `config.json` of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from vit_export.artifact.manifest import Activation
from vit_export.errors import CheckpointError
from vit_export.variants import VARIANTS

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
}
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
OUTPUT_ACTIVATIONS: dict[str, Activation] = {
    "multi_label_classification": "sigmoid",
    "regression": "none",
}
MODULE_HINT = "export the module itself with --module package.module:factory"

SizePx = int | tuple[int, int]
Positive = Annotated[int, msgspec.Meta(ge=1)]


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """Contents of the JSON files beside the weights.

    Attributes:
        fields: Config fields by the name of their file.
        crop_mode: As `Preprocess.crop_mode`.
        activation: What turns logits into scores, as in the manifest.
        labels: Class names; empty where the file has generic ones only.
        notes: Settings that cannot be taken over, each with a sentence for the report.
    """

    fields: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    crop_mode: str = "center"
    activation: Activation = "softmax"
    labels: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)


class _Kind(msgspec.Struct):
    """What tells which library wrote a config.json."""

    model_type: Any = None
    architecture: Any = None
    pretrained_cfg: Any = None


class _Size(msgspec.Struct):
    height: Positive | None = None
    width: Positive | None = None
    shortest_edge: Positive | None = None


AnySize = int | tuple[int, int] | _Size  # msgspec 0.22 crashes on constraints inside the tuple


class _HuggingFace(msgspec.Struct):
    """config.json of transformers' ViT and DeiT, with the library's defaults."""

    hidden_act: str = "gelu"
    pooler_act: str = "tanh"
    num_attention_heads: int = 12
    layer_norm_eps: float = 1e-12
    image_size: AnySize = 224
    patch_size: AnySize | None = None
    hidden_size: Positive | None = None
    intermediate_size: int | None = None
    num_hidden_layers: int | None = None
    num_channels: int | None = None
    qkv_bias: bool | None = None
    problem_type: str | None = None
    id2label: dict[str, str] | None = None


class _Processor(msgspec.Struct):
    """preprocessor_config.json: pixel_values = (rescale_factor * x - mean) / std, x in [0, 255]."""

    do_rescale: bool | None = True
    do_normalize: bool | None = True
    do_center_crop: bool | None = False
    rescale_factor: Annotated[float, msgspec.Meta(gt=0)] = 1 / 255
    resample: Literal[0, 1, 2, 3] = 2
    image_mean: tuple[float, ...] | None = None
    image_std: tuple[float, ...] | None = None
    size: AnySize = 224
    crop_size: AnySize | None = None


class _Timm(msgspec.Struct):
    """config.json of timm."""

    class Pretrained(msgspec.Struct):
        input_size: tuple[int, int, int] | None = None
        mean: tuple[float, ...] | None = None
        std: tuple[float, ...] | None = None
        crop_pct: float | None = None
        crop_mode: str = "center"
        interpolation: str | None = None
        label_names: tuple[str, ...] | None = None

    class Arguments(msgspec.Struct):
        num_heads: int | None = None
        qkv_bias: bool | None = None
        img_size: AnySize | None = None
        global_pool: str | None = None

    architecture: str | None = None
    global_pool: str | None = None
    pretrained_cfg: Pretrained | None = None
    model_args: Arguments | None = None
    label_names: tuple[str, ...] | None = None


def read_metadata(folder: Path, *, layout: str) -> Metadata:
    """Read the JSON files that belong to a layout.

    Args:
        folder: Folder of the weights.
        layout: `huggingface` or `timm`; other libraries write no such files.

    Raises:
        CheckpointError: A file is damaged, or describes a network that `VisionTransformer` cannot
            be.
    """
    path = folder / CONFIG
    if layout not in ("huggingface", "timm") or not path.exists():
        return Metadata()
    kind = _decode(path, _Kind)
    if layout == "huggingface" and kind.model_type in ("vit", "deit"):
        return _hugging_face(path)
    if layout == "timm" and (kind.pretrained_cfg is not None or kind.architecture is not None):
        return _timm(path)
    return Metadata()


T = TypeVar("T")


def _decode(path: Path, kind: type[T]) -> T:
    """Read a JSON object as a struct.

    Raises:
        CheckpointError: Naming the file and, where one is wrong, the field.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except msgspec.ValidationError as error:
        message, _, field_path = str(error).partition(" - at `$")
        name = re.sub(r"^\.|`$", "", field_path)
        raise _wrong(path, f"{name}: {message}" if name else message) from error
    except msgspec.DecodeError as error:
        raise _wrong(path, f"invalid JSON ({error})") from error


def _wrong(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: {what}", hint=f"fix {path.name}, or remove it to load the weights without it"
    )


def _given(**fields: Any) -> dict[str, Any]:
    """The fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def _hugging_face(path: Path) -> Metadata:
    config = _decode(path, _HuggingFace)
    if config.hidden_act not in ACTIVATIONS:
        raise CheckpointError(
            f"{path}: hidden_act {config.hidden_act!r} is not supported; supported are "
            f"{', '.join(ACTIVATIONS)}",
            hint=MODULE_HINT,
        )
    if config.pooler_act != "tanh":
        raise CheckpointError(
            f"{path}: pooler_act {config.pooler_act!r} is not supported; supported is tanh",
            hint=MODULE_HINT,
        )
    width, hidden = config.hidden_size, config.intermediate_size
    fields = _given(
        num_heads=config.num_attention_heads,
        norm_eps=config.layer_norm_eps,
        act_layer=ACTIVATIONS[config.hidden_act],
        img_size=_size(config.image_size, path, "image_size"),
        embed_dim=width,
        mlp_ratio=hidden / width if hidden and width else None,
        depth=config.num_hidden_layers,
        in_chans=config.num_channels,
        qkv_bias=config.qkv_bias,
    )
    if config.patch_size is not None:
        patch = _size(config.patch_size, path, "patch_size")
        if isinstance(patch, tuple):
            raise CheckpointError(
                f"{path}: patch_size {patch} is not supported; patches must be square",
                hint=MODULE_HINT,
            )
        fields["patch_size"] = patch
    crop_mode, preparation = "center", dict[str, Any]()
    if (processor := path.with_name(PROCESSOR)).exists():
        crop_mode, preparation = _preparation(processor, channels=config.num_channels or 3)
    return Metadata(
        fields={CONFIG: fields, PROCESSOR: preparation},
        crop_mode=crop_mode,
        activation=OUTPUT_ACTIVATIONS.get(config.problem_type or "", "softmax"),
        labels=_labels(path, config.id2label or {}),
    )


def _labels(path: Path, id2label: Mapping[str, str]) -> tuple[str, ...]:
    """Class names of a Hugging Face config.json; none where they are LABEL_0, LABEL_1, ..."""
    try:
        names = {int(number): name for number, name in id2label.items()}
        labels = tuple(names[number] for number in range(len(names)))
    except (ValueError, KeyError) as error:
        raise _wrong(path, f"id2label: expected every class number from 0 ({error!r})") from error
    return () if all(name == f"LABEL_{n}" for n, name in enumerate(labels)) else labels


def _preparation(path: Path, *, channels: int) -> tuple[str, dict[str, Any]]:
    """Crop mode and config fields of a preprocessor_config.json."""
    processor = _decode(path, _Processor)
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    scale = 1.0 if abs(factor * 255 - 1) < 1e-9 else factor * 255  # ours starts from x / 255
    fields: dict[str, Any] = {"interpolation": RESAMPLE[processor.resample]}
    if not processor.do_normalize:
        fields |= {"mean": (0.0,) * channels, "std": (1 / scale,) * channels}
    elif processor.image_mean is None or processor.image_std is None:
        name = "image_mean" if processor.image_mean is None else "image_std"
        raise _wrong(path, f"{name} is missing, though do_normalize is true")
    else:
        fields["mean"] = tuple(value / scale for value in processor.image_mean)
        fields["std"] = tuple(value / scale for value in processor.image_std)
    resized = _size(processor.size, path, "size")
    keeps_aspect = isinstance(processor.size, _Size) and processor.size.shortest_edge is not None
    crop = resized
    if processor.do_center_crop and processor.crop_size is not None:
        crop = _size(processor.crop_size, path, "crop_size")
    fields["crop_pct"] = _crop_pct(_shorter(crop), _shorter(resized))
    return "center" if keeps_aspect else "squash", fields


def _crop_pct(crop: int, resized: int) -> float:
    """The share with floor(crop / share) == resized, despite rounding."""
    share = min(1.0, crop / resized)
    return math.nextafter(share, 0) if math.floor(crop / share) < resized else share


def _size(value: AnySize, path: Path, name: str) -> SizePx:
    """A size in pixels from `224`, `[224, 160]`, `{"height": ..., "width": ...}` or similar."""
    if isinstance(value, _Size):
        if value.shortest_edge is not None:
            return value.shortest_edge
        if value.height is None or value.width is None:
            raise _wrong(path, f"{name}: expected height and width, or shortest_edge")
        value = (value.height, value.width)
    height, width = (value, value) if isinstance(value, int) else value
    if min(height, width) < 1:
        raise _wrong(path, f"{name}: expected a positive size, found {value}")
    return height if height == width else (height, width)


def _shorter(size: SizePx) -> int:
    return min(size) if isinstance(size, tuple) else size


def _timm(path: Path) -> Metadata:
    config = _decode(path, _Timm)
    pretrained, arguments = config.pretrained_cfg or _Timm.Pretrained(), config.model_args
    arguments = arguments or _Timm.Arguments()
    pool = config.global_pool or arguments.global_pool or "token"
    if pool not in ("token", "avg"):
        raise CheckpointError(
            f"{path}: global_pool {pool!r} is not supported; supported are token and avg",
            hint=MODULE_HINT,
        )
    variant = VARIANTS.get((config.architecture or "").split(".")[0])
    size: AnySize | None = arguments.img_size
    if size is None and pretrained.input_size is not None:
        size = pretrained.input_size[1:]
    mode = pretrained.crop_mode
    fields = _given(
        num_heads=arguments.num_heads or (variant.num_heads if variant else None),
        qkv_bias=arguments.qkv_bias,
        global_pool=pool,
        img_size=None if size is None else _size(size, path, "input_size"),
        mean=pretrained.mean,
        std=pretrained.std,
        crop_pct=pretrained.crop_pct,
        interpolation=pretrained.interpolation,
    )
    known = mode in ("center", "squash")
    return Metadata(
        fields={CONFIG: fields},
        crop_mode=mode if known else "center",
        labels=config.label_names or pretrained.label_names or (),
        notes={} if known else {"crop_mode": f"center; {CONFIG} asks for {mode!r}"},
    )

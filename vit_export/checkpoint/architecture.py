"""The architecture that a checkpoint has: seen in its shapes, told beside it, or assumed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vit_export.checkpoint.layouts.rules import Layout
from vit_export.checkpoint.metadata import Sidecar
from vit_export.errors import CheckpointError, ConfigError
from vit_export.model.pos_embed import trained_size
from vit_export.variants import VARIANTS, ViTConfig

PREPARATION = ("mean", "std", "crop_pct", "interpolation")
# fields that a file shows beyond doubt: a variant, config.json or option must not deny them
DECIDED_BY_FILE = (
    "embed_dim",
    "depth",
    "patch_size",
    "in_chans",
    "mlp_ratio",
    "qkv_bias",
    "distilled",
)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What a checkpoint's model is.

    Attributes:
        config: As the file has it: its image size, its number of classes.
        inferred: Config fields read off the file's shapes.
        assumed: Field to its value and where it came from.
    """

    config: ViTConfig
    inferred: Mapping[str, Any]
    assumed: Mapping[str, str] = field(default_factory=dict)


def seen_in(state: Mapping[str, Tensor], *, source: str) -> dict[str, Any]:
    """Config fields that the shapes of tensors in our names and shapes show.

    `img_size` is not among them: a position embedding tells only the number of patches.

    Args:
        state: Meta tensors under our names.
        source: Name of the file, for messages.

    Raises:
        CheckpointError: Blocks that are absent, or patches that are not square.
    """
    seen: dict[str, Any] = {
        "distilled": "dist_token" in state or "head_dist.weight" in state,
        "qkv_bias": any(name.endswith(".attn.qkv.bias") for name in state),
        "num_classes": _rows(state, "head") or _rows(state, "head_dist"),
        "representation_size": _rows(state, "pre_logits.fc"),
    }
    blocks = sorted({int(name.split(".")[1]) for name in state if name.startswith("blocks.")})
    if blocks:
        seen["depth"] = blocks[-1] + 1
        if len(blocks) < seen["depth"]:
            numbers = set(blocks[:-1])
            absent = next(number for number in range(seen["depth"]) if number not in numbers)
            raise CheckpointError(
                f"{source}: it has {len(blocks)} blocks, numbered up to {blocks[-1]}; block "
                f"{absent} is the first that is absent. Take the whole file: this one is not "
                "complete"
            )
    for name in ("cls_token", "norm.weight", "norm.bias", "patch_embed.proj.bias"):
        if "embed_dim" not in seen and (width := _axis(state, name, -1)):
            seen["embed_dim"] = width
    kernel = state.get("patch_embed.proj.weight")
    if kernel is not None and kernel.ndim == 4:
        seen["in_chans"] = kernel.shape[1]
        seen["patch_size"] = kernel.shape[2]
        if kernel.shape[2] != kernel.shape[3]:
            raise CheckpointError(
                f"{source}: patches of {kernel.shape[2]} x {kernel.shape[3]} px; vit-export has "
                "square patches only. Export the module itself with --module pkg:factory"
            )
    hidden = next((w for b in blocks if (w := _axis(state, f"blocks.{b}.mlp.fc1.weight", 0))), None)
    if hidden and "embed_dim" in seen:
        seen["mlp_ratio"] = _ratio(hidden, seen["embed_dim"])
    return seen


def _axis(state: Mapping[str, Tensor], name: str, axis: int) -> int | None:
    tensor = state.get(name)
    return tensor.shape[axis] if tensor is not None and tensor.ndim else None


def _rows(state: Mapping[str, Tensor], layer: str) -> int:
    """Output width of a layer; 0 where neither its weight nor its bias is there."""
    return _axis(state, f"{layer}.weight", 0) or _axis(state, f"{layer}.bias", 0) or 0


def _ratio(hidden: int, width: int) -> float:
    """The ratio whose product with the width is `hidden` again, after truncation."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def resolve(
    state: Mapping[str, Tensor],
    *,
    layout: Layout,
    sidecar: Sidecar,
    own: ViTConfig | None,
    variant: ViTConfig | None,
    overrides: Mapping[str, Any],
    heads: int | None,
    source: str,
    stem: str,
) -> Architecture:
    """Join what the file shows, what lies beside it, the variant and the user's settings.

    Args:
        state: Meta tensors under our names, in our shapes.
        layout: Where they came from.
        sidecar: What was read beside the file.
        own: The config inside a file of vit-export.
        variant: What the user says it is.
        overrides: Config fields the user set; `img_size` and `num_classes` speak of the model
            wanted and are left to the caller.
        heads: Number of heads, where the shapes show it.
        source: Name of the file, for messages.
        stem: Name of a model that fits no variant.

    Raises:
        CheckpointError: A contradiction, or something that cannot be known.
    """
    settings = {k: v for k, v in overrides.items() if k not in ("img_size", "num_classes")}
    seen = seen_in(state, source=source)
    if heads:
        seen["num_heads"] = heads
    presumed = {
        name: (value, reason)
        for name, (value, reason) in layout.assumed.items()
        if name not in ("mean", "std") or len(value) == seen.get("in_chans", len(value))
    }
    told = {**layout.fixed, **{name: value for name, (value, _) in presumed.items()}}
    told |= sidecar.fields
    assumed = {
        name: f"{value}, {reason}"
        for name, (value, reason) in presumed.items()
        if name not in sidecar.fields and name not in settings
    }
    for name in ("num_heads", "norm_eps", "act_layer", "global_pool"):
        if name in sidecar.fields and name not in seen:
            assumed[name] = f"{sidecar.fields[name]}, from {sidecar.source}"
            if name in settings:
                assumed[name] = f"{settings[name]}, as set; {assumed[name]} otherwise"
    base = own or variant
    told_sizes = {
        "config.json": sidecar.fields.get("img_size"),
        **({f"variant {base.variant}": base.img_size} if base else {}),
        "the img_size asked for": overrides.get("img_size"),
    }
    size = trained_size(state.get("pos_embed"), seen, told_sizes, source=source)
    if size is not None:
        seen["img_size"] = size
        if isinstance(size, tuple) and own is None:
            assumed["img_size"] = f"{size[0]}x{size[1]} px, the one known size of so many patches"
    decided = [*DECIDED_BY_FILE, "num_heads"]
    denied = [*decided, "img_size"] if "img_size" not in overrides else decided
    voices = {
        "its own config": _only(decided, vars(own)) if own else {},
        variant.variant if variant else "": _only(denied, vars(variant)) if variant else {},
        sidecar.source: _only(decided, sidecar.fields),
        "you": _asked(settings),
    }
    _check_contradictions(seen, voices, source=source)
    matched = base or _matching(seen)
    fields = {**told, **seen}
    if "num_heads" not in fields and "num_heads" not in settings and own is None:
        fields["num_heads"], assumed["num_heads"] = _heads(
            seen, layout=layout, variant=variant, matched=matched, source=source
        )
    if own is None and not set(PREPARATION) & (set(told) | set(settings)):
        name = f"variant {matched.variant}" if matched else "the original release"
        assumed["preprocess"] = f"{', '.join(PREPARATION)} of {name}"
    known = matched or ViTConfig(variant=stem)
    try:
        config = known.replace({**fields, **settings})
    except ConfigError as error:
        if settings:
            raise
        raise CheckpointError(f"{source}: no network is as the file has it: {error}") from error
    if matched is None:
        config = config.replace({"variant": stem})
    return Architecture(config=config, inferred=seen, assumed={**assumed, **sidecar.notes})


def _check_contradictions(
    seen: Mapping[str, Any], voices: Mapping[str, Mapping[str, Any]], *, source: str
) -> None:
    """Raise one error with everything that the file denies.

    Args:
        seen: What the file shows.
        voices: Who says otherwise, and the fields that they speak of.
        source: Name of the file, for messages.
    """
    lines = [
        f"  ! {name}: file {seen[name]}, {voice} {fields[name]}"
        for name in seen
        for voice, fields in voices.items()
        if name in fields and not _same(name, seen, fields)
    ]
    if lines:
        fitting = _matching(seen)
        hint = f"--variant {fitting.variant}" if fitting else "without --variant"
        if any(line.startswith("  ! img_size") for line in lines):
            hint += ", or --img-size to resample the position embedding"
        raise CheckpointError(
            f"cannot load {source}: what is said of it contradicts what it shows\n"
            + "\n".join(lines)
            + f"\n  try: {hint}"
        )


def _asked(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The user's settings that a file decides, each read as the type of its field."""
    plain = ViTConfig(variant="", num_heads=1, img_size=1, patch_size=1)
    values = {}
    for name in (*DECIDED_BY_FILE, "num_heads"):
        if name in overrides:
            companion = {"patch_size": "img_size", "num_heads": "embed_dim"}.get(name, name)
            changed = plain.replace({name: overrides[name], companion: overrides[name]})
            values[name] = getattr(changed, name)
    return values


def _only(names: Sequence[str], fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: fields[name] for name in names if name in fields}


def _same(name: str, seen: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    if name == "mlp_ratio":
        width = seen["embed_dim"]
        return int(width * fields[name] + 1e-6) == int(width * seen[name])
    return bool(seen[name] == fields[name])


MATCHED_FIELDS = (
    "embed_dim", "depth", "patch_size", "in_chans", "mlp_ratio", "qkv_bias", "distilled",
    "representation_size", "img_size",
)  # fmt: skip


def _matching(seen: Mapping[str, Any]) -> ViTConfig | None:
    """The variant of exactly this architecture."""
    for config in VARIANTS.values():
        if all(seen.get(name) == getattr(config, name) for name in MATCHED_FIELDS):
            return config
    return None


def _heads(
    seen: Mapping[str, Any],
    *,
    layout: Layout,
    variant: ViTConfig | None,
    matched: ViTConfig | None,
    source: str,
) -> tuple[int, str]:
    """The number of heads from the table of variants, and the sentence that says so."""
    if layout.heads_in_table or variant is not None:
        similar = [
            config
            for config in VARIANTS.values()
            if all(seen.get(k) == getattr(config, k) for k in ("embed_dim", "depth", "mlp_ratio"))
        ]
        for config in filter(None, (variant, matched, *similar)):
            return config.num_heads, f"{config.num_heads}, from variant {config.variant}"
    width = seen.get("embed_dim", 0)
    fits = ", ".join(str(n) for n in range(1, width + 1) if width % n == 0 and width // n >= 4)
    raise CheckpointError(
        f"{source}: the number of heads cannot be seen in its tensors (queries, keys and values "
        f"of width {width}), and nothing beside it says so. Give it with --set num_heads=N "
        f"(one of {fits})"
    )

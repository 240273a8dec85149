"""The architecture of a checkpoint's model, from its tensors and from claims of others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vit_export.checkpoint.layouts.rules import Layout
from vit_export.checkpoint.metadata import CONFIG, PROCESSOR, Metadata
from vit_export.checkpoint.trained_size import trained_size
from vit_export.errors import CheckpointError, ConfigError
from vit_export.variants import IDENTITY, PREPARATION, VARIANTS, ViTConfig, parse_field

# fields that tensors show beyond doubt, so that no other claim may contradict them
DECIDED_BY_TENSORS = (
    "embed_dim",
    "depth",
    "patch_size",
    "in_chans",
    "mlp_ratio",
    "qkv_bias",
    "distilled",
)
NEVER_IN_TENSORS = ("norm_eps", "act_layer", "global_pool")
TENSORS, OWN, USER = "file", "its own config", "you"
DEFAULT = "the original release of ViT"
WANTED = ("img_size", "num_classes")  # fields of the model wanted, which may differ from the file


@dataclass(frozen=True)
class Claim:
    """A statement about one config field."""

    field: str
    value: Any
    source: str  # who states it, e.g. "config.json"
    decisive: bool = False  # it must agree with all other decisive claims about its field


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The model that a checkpoint was saved from."""

    config: ViTConfig  # with the file's image size and number of classes
    inferred: Mapping[str, Any]  # config fields that the tensors' shapes show
    assumed: Mapping[str, str]  # fields that did not come from the file: value and source


def fields_from_shapes(state: Mapping[str, Tensor], *, source: str) -> dict[str, Any]:
    """Return the config fields that the shapes of meta tensors show, `img_size` excepted.

    Raises:
        CheckpointError: A block is missing, or patches are not square.
    """
    fields: dict[str, Any] = {
        "distilled": "dist_token" in state or "head_dist.weight" in state,
        "qkv_bias": any(name.endswith(".attn.qkv.bias") for name in state),
        "num_classes": _rows(state, "head") or _rows(state, "head_dist"),
        "representation_size": _rows(state, "pre_logits.fc"),
    }
    blocks = sorted({int(name.split(".")[1]) for name in state if name.startswith("blocks.")})
    if blocks:
        fields["depth"] = blocks[-1] + 1
        if len(blocks) < fields["depth"]:
            missing = next(n for n, block in enumerate(blocks) if n != block)
            raise CheckpointError(
                f"{source}: it has {len(blocks)} blocks, numbered up to {blocks[-1]}; block "
                f"{missing} is the first that is missing",
                hint="load the whole file: this one is not complete",
            )
    for name in ("cls_token", "norm.weight", "norm.bias", "patch_embed.proj.bias"):
        if "embed_dim" not in fields and (width := _axis(state, name, -1)):
            fields["embed_dim"] = width
    kernel = state.get("patch_embed.proj.weight")
    if kernel is not None and kernel.ndim == 4:
        _, fields["in_chans"], height, width = kernel.shape
        fields["patch_size"] = height
        if height != width:
            raise CheckpointError(
                f"{source}: patches of {height} x {width} px are not supported; they must be "
                "square",
                hint="export the module itself with --module package.module:factory",
            )
    hidden = next((w for b in blocks if (w := _axis(state, f"blocks.{b}.mlp.fc1.weight", 0))), None)
    if hidden and "embed_dim" in fields:
        ratio = hidden / (width := fields["embed_dim"])
        if int(width * ratio) < hidden:  # despite rounding, int(width * ratio) is hidden
            ratio = math.nextafter(ratio, math.inf)
        fields["mlp_ratio"] = ratio
    return fields


def _axis(state: Mapping[str, Tensor], name: str, axis: int) -> int | None:
    tensor = state.get(name)
    return tensor.shape[axis] if tensor is not None and tensor.ndim else None


def _rows(state: Mapping[str, Tensor], layer: str) -> int:
    """Output width of a layer; 0 where the file has neither its weight nor its bias."""
    return _axis(state, f"{layer}.weight", 0) or _axis(state, f"{layer}.bias", 0) or 0


def resolve(
    state: Mapping[str, Tensor],
    *,
    layout: Layout,
    metadata: Metadata,
    own: ViTConfig | None,
    variant: ViTConfig | None,
    overrides: Mapping[str, Any],
    num_heads: int | None,
    source: str,
    stem: str,
) -> Architecture:
    """Find the architecture; of several claims about a field, the first in precedence wins.

    Precedence: the user, the config inside a file of vit-export, the tensors, files beside the
    checkpoint, defaults of its library. Fields without any claim are those of the variant.

    `state` are meta tensors under our names, `own` is the config inside a file of vit-export, and
    `num_heads` is known where shapes show it. A model that is no variant is named `stem`.

    Raises:
        CheckpointError: A claim contradicts the tensors, or a field is unknown.
        ConfigError: The user's settings make no network.
    """
    inferred = fields_from_shapes(state, source=source)
    if num_heads:
        inferred["num_heads"] = num_heads
    trained = trained_size(
        state.get("pos_embed") if "patch_size" in inferred else None,
        patch_size=inferred.get("patch_size", 1),
        num_prefix_tokens=2 if inferred["distilled"] else 1,
        sizes={
            OWN: own.img_size if own else None,
            **{file: fields.get("img_size") for file, fields in metadata.fields.items()},
            USER: overrides.get("img_size"),
            **({f"variant {variant.variant}": variant.img_size} if variant else {}),
        },
        source=source,
    )
    if trained is not None:
        inferred["img_size"] = trained[0]
    decided = {*DECIDED_BY_TENSORS, *(["num_heads"] if num_heads or own else [])}
    plain = ViTConfig(variant="")
    settings = {
        name: parse_field(name, value, getattr(plain, name)) if name in decided else value
        for name, value in overrides.items()
        if name not in WANTED
    }
    claims = [
        *_claims(settings, USER, decided),
        *_claims(vars(own) if own else {}, OWN, decided),
        *_claims(inferred, TENSORS, set(inferred)),
    ]
    for file, fields in metadata.fields.items():
        claims += _claims(fields, file, set(DECIDED_BY_TENSORS))
    for name, (value, origin) in layout.assumed.items():
        if name not in ("mean", "std") or len(value) == inferred.get("in_chans", len(value)):
            claims.append(Claim(name, value, origin))
    of_variant = decided if "img_size" in overrides else {*decided, "img_size"}
    of_variants = _claims(vars(variant), variant.variant, of_variant) if variant else []
    _check_conflicts([*claims, *of_variants], source=source)
    if not any(claim.field == "num_heads" for claim in claims):
        claims.append(_heads(inferred, layout=layout, variant=variant, source=source))
    winners: dict[str, Claim] = {}
    for claim in claims:
        winners.setdefault(claim.field, claim)
    _check_channels(winners, inferred, source=source)
    known = own or variant or _matching(inferred)
    base = known or ViTConfig(variant=stem)
    try:
        config = base.replace({name: claim.value for name, claim in winners.items()})
    except ConfigError as error:
        if set(overrides) - set(WANTED):
            raise
        raise CheckpointError(
            f"{source}: its tensors and the files beside it describe no network: {error}"
        ) from error
    assumed = _assumptions(claims, winners, base, f"variant {known.variant}" if known else DEFAULT)
    if trained is not None and isinstance(trained[0], tuple) and trained[1] != OWN:
        height, width = trained[0]
        origin = "as set" if trained[1] == USER else f"from {trained[1]}"
        assumed["img_size"] = f"{height}x{width} px, {origin}: it has as many patches as the file"
    return Architecture(config=config, inferred=inferred, assumed={**assumed, **metadata.notes})


def _claims(fields: Mapping[str, Any], source: str, decisive: Set[str]) -> list[Claim]:
    return [
        Claim(name, value, source, name in decisive)
        for name, value in fields.items()
        if name not in IDENTITY
    ]


def _check_conflicts(claims: Sequence[Claim], *, source: str) -> None:
    """Raise one CheckpointError with every decisive claim that contradicts the file."""
    decisive = [claim for claim in claims if claim.decisive]
    in_file = {claim.field: claim for claim in decisive if claim.source == OWN}
    in_file |= {claim.field: claim for claim in decisive if claim.source == TENSORS}
    width = in_file["embed_dim"].value if "embed_dim" in in_file else 0
    lines = [
        f"  ! {name}: {claim.source} {claim.value}, {other.source} {other.value}"
        for name, claim in in_file.items()
        for other in decisive
        if other.field == name and not _agree(claim, other, width)
    ]
    if lines:
        matching = _matching({name: claim.value for name, claim in in_file.items()})
        hint = f"--variant {matching.variant}" if matching else "leave --variant out"
        if any(line.startswith("  ! img_size") for line in lines):
            hint += ", or --img-size to resample the position embedding"
        raise CheckpointError(
            f"cannot load {source}: claims about it contradict its contents\n" + "\n".join(lines),
            hint=hint,
        )


def _agree(claim: Claim, other: Claim, width: int) -> bool:
    if claim.field == "mlp_ratio":  # two ratios may make the same hidden width
        return int(width * other.value + 1e-6) == int(width * claim.value)
    return bool(claim.value == other.value)


MATCHED_FIELDS = (*DECIDED_BY_TENSORS, "representation_size", "img_size")


def _matching(inferred: Mapping[str, Any]) -> ViTConfig | None:
    """The variant of exactly this architecture."""
    for config in VARIANTS.values():
        if all(inferred.get(name) == getattr(config, name) for name in MATCHED_FIELDS):
            return config
    return None


def _heads(
    inferred: Mapping[str, Any], *, layout: Layout, variant: ViTConfig | None, source: str
) -> Claim:
    """The number of heads of the variant, or of one with the same widths and depth."""
    candidates = [config for config in (_matching(inferred), *VARIANTS.values()) if config]
    widths = ("embed_dim", "depth", "mlp_ratio")
    alike = (
        c for c in candidates if all(inferred.get(name) == getattr(c, name) for name in widths)
    )
    config = variant or (next(alike, None) if layout.heads_in_table else None)
    if config is not None:
        return Claim("num_heads", config.num_heads, f"variant {config.variant}")
    width = inferred.get("embed_dim", 0)
    fits = ", ".join(str(n) for n in range(1, width + 1) if width % n == 0 and width // n >= 4)
    raise CheckpointError(
        f"{source}: tensors do not show the number of heads (queries, keys and values have the "
        f"width {width}), and no file beside it states it",
        hint=f"give it with --set num_heads=N (one of {fits})",
    )


def _check_channels(
    winners: Mapping[str, Claim], inferred: Mapping[str, Any], *, source: str
) -> None:
    """Raise CheckpointError where mean or std of a file are not one number for each channel."""
    channels = inferred.get("in_chans", 0)
    for name in ("mean", "std"):
        claim = winners.get(name)
        if claim is None or claim.source not in (CONFIG, PROCESSOR) or not channels:
            continue
        if len(claim.value) != channels:
            field = f"image_{name}" if claim.source == PROCESSOR else name
            raise CheckpointError(
                f"{source}: the model has {channels} channels, and {claim.source} beside it has "
                f"{len(claim.value)} values of {field}",
                hint="set both with --mean and --std, one number for each channel, or fix "
                f"{claim.source}",
            )


def _assumptions(
    claims: Sequence[Claim], winners: Mapping[str, Claim], base: ViTConfig, base_source: str
) -> dict[str, str]:
    """What did not come from the file: each field with its value and source."""
    assumed: dict[str, str] = {}
    preparation: dict[str, list[str]] = {}
    for name in dict.fromkeys([*winners, *NEVER_IN_TENSORS, *PREPARATION]):
        claim = winners.get(name) or Claim(name, getattr(base, name), base_source)
        if claim.source == USER:
            replaced = next((c for c in claims if c.field == name and c.source == CONFIG), None)
            if replaced and name not in PREPARATION:
                assumed[name] = f"{claim.value}, as set; {replaced.value}, from {CONFIG} otherwise"
        elif name in PREPARATION and claim.source in (CONFIG, PROCESSOR, base_source):
            preparation.setdefault(claim.source, []).append(name)
        elif claim.source not in (TENSORS, OWN):
            assumed[name] = f"{claim.value}, from {claim.source}"
    if preparation:
        assumed["preprocess"] = "; ".join(
            f"{', '.join(names)} from {origin}" for origin, names in preparation.items()
        )
    return assumed

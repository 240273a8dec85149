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
from vit_export.variants import IDENTITY, VARIANTS, ViTConfig, parse_field

PREPARATION = ("mean", "std", "crop_pct", "interpolation")
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
    """A statement about one config field.

    Attributes:
        field: Name of the field.
        value: Its value.
        source: Who states it, e.g. `"config.json"`.
        decisive: A decisive claim must agree with all other decisive claims about its field.
    """

    field: str
    value: Any
    source: str
    decisive: bool = False


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The model that a checkpoint was saved from.

    Attributes:
        config: With the file's image size and number of classes.
        inferred: Config fields that the tensors' shapes show.
        assumed: Fields that did not come from the file, each with its value and source.
    """

    config: ViTConfig
    inferred: Mapping[str, Any]
    assumed: Mapping[str, str]


def fields_from_shapes(state: Mapping[str, Tensor], *, source: str) -> dict[str, Any]:
    """Return the config fields that shapes show, `img_size` excepted.

    Args:
        state: Meta tensors under our names.
        source: Name of the file, for messages.

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
        fields["mlp_ratio"] = _ratio(hidden, fields["embed_dim"])
    return fields


def _axis(state: Mapping[str, Tensor], name: str, axis: int) -> int | None:
    tensor = state.get(name)
    return tensor.shape[axis] if tensor is not None and tensor.ndim else None


def _rows(state: Mapping[str, Tensor], layer: str) -> int:
    """Output width of a layer; 0 where the file has neither its weight nor its bias."""
    return _axis(state, f"{layer}.weight", 0) or _axis(state, f"{layer}.bias", 0) or 0


def _ratio(hidden: int, width: int) -> float:
    """The ratio with int(width * ratio) == hidden, despite rounding."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


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

    Args:
        state: Meta tensors under our names, in our shapes.
        layout: Layout of the file.
        metadata: Contents of the files beside it.
        own: The config inside a file of vit-export.
        variant: The variant that the user names.
        overrides: Config fields set by the user; `img_size` and `num_classes` describe the model
            wanted, not the file.
        num_heads: Number of heads, where shapes show it.
        source: Name of the file, for messages.
        stem: Name of the model where it is no variant.

    Raises:
        CheckpointError: A claim contradicts the tensors, or a field is unknown.
        ConfigError: The user's settings make no network.
    """
    inferred = fields_from_shapes(state, source=source)
    if num_heads:
        inferred["num_heads"] = num_heads
    beside = [
        Claim(name, value, file, name in DECIDED_BY_TENSORS)
        for file, fields in metadata.fields.items()
        for name, value in fields.items()
    ]
    trained = trained_size(
        state.get("pos_embed") if "patch_size" in inferred else None,
        patch_size=inferred.get("patch_size", 1),
        num_prefix_tokens=2 if inferred["distilled"] else 1,
        sizes={
            OWN: own.img_size if own else None,
            **{claim.source: claim.value for claim in beside if claim.field == "img_size"},
            USER: overrides.get("img_size"),
            **({f"variant {variant.variant}": variant.img_size} if variant else {}),
        },
        source=source,
    )
    if trained is not None:
        inferred["img_size"] = trained[0]
    decided = {*DECIDED_BY_TENSORS, *(["num_heads"] if num_heads or own else [])}
    claims = [
        *_settings(overrides, decided),
        *(_claims_of(own, OWN, decided) if own else []),
        *(Claim(name, value, TENSORS, True) for name, value in inferred.items()),
        *beside,
        *_library_defaults(layout, inferred),
    ]
    of_variant = decided if "img_size" in overrides else {*decided, "img_size"}
    _check_conflicts(
        [*claims, *(_claims_of(variant, variant.variant, of_variant) if variant else [])],
        source=source,
    )
    known = own or variant or _matching(inferred)
    if not any(claim.field == "num_heads" for claim in claims):
        claims.append(_heads(inferred, layout=layout, variant=variant, known=known, source=source))
    winners: dict[str, Claim] = {}
    for claim in claims:
        winners.setdefault(claim.field, claim)
    _check_channels(winners, inferred, source=source)
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


def _settings(overrides: Mapping[str, Any], decided: Set[str]) -> list[Claim]:
    """The user's claims; a decisive one is converted to the type of its field."""
    plain = ViTConfig(variant="")
    return [
        Claim(name, parse_field(name, value, getattr(plain, name)), USER, True)
        if name in decided
        else Claim(name, value, USER)
        for name, value in overrides.items()
        if name not in WANTED
    ]


def _claims_of(config: ViTConfig, source: str, decisive: Set[str]) -> list[Claim]:
    return [
        Claim(name, value, source, name in decisive)
        for name, value in vars(config).items()
        if name not in IDENTITY
    ]


def _library_defaults(layout: Layout, inferred: Mapping[str, Any]) -> list[Claim]:
    return [
        Claim(name, value, origin)
        for name, (value, origin) in layout.assumed.items()
        if name not in ("mean", "std") or len(value) == inferred.get("in_chans", len(value))
    ]


def _check_conflicts(claims: Sequence[Claim], *, source: str) -> None:
    """Raise one error with every decisive claim that contradicts the file.

    Raises:
        CheckpointError: There is one.
    """
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
    inferred: Mapping[str, Any],
    *,
    layout: Layout,
    variant: ViTConfig | None,
    known: ViTConfig | None,
    source: str,
) -> Claim:
    """The number of heads of the variant, or of one with the same widths and depth.

    Raises:
        CheckpointError: The number is unknown.
    """
    if variant is not None:
        return Claim("num_heads", variant.num_heads, f"variant {variant.variant}")
    if layout.heads_in_table:
        for config in (known, *VARIANTS.values()):
            if config is not None and all(
                inferred.get(name) == getattr(config, name)
                for name in ("embed_dim", "depth", "mlp_ratio")
            ):
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
        if claim is None or claim.source not in (CONFIG, PROCESSOR):
            continue
        if channels and len(claim.value) != channels:
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

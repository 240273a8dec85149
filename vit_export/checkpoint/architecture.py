"""The architecture of a checkpoint's model, from its tensors and from claims of others."""

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vit_export.checkpoint.layouts.rules import Cue, Layout
from vit_export.checkpoint.metadata import CONFIG, MODULE_HINT, PROCESSOR, Metadata
from vit_export.checkpoint.positions import trained_positions
from vit_export.errors import CheckpointError, ConfigError
from vit_export.variants import IDENTITY, PREPARATION, VARIANTS, ViTConfig, parse_field

# fields that tensors show beyond doubt, so that no other claim may contradict them
DECIDED = (
    *("embed_dim", "depth", "patch_size", "in_chans", "mlp_ratio", "mlp_layer", "qkv_bias"),
    *("patch_bias", "class_token", "distilled", "reg_tokens", "init_values", "pre_norm"),
    *("fc_norm", "projection_dim"),
)
MATCHED = (*DECIDED, "representation_size", "img_size")  # by a variant
PARTS = (  # that few models have: reported where they are there
    *("mlp_layer", "patch_bias", "class_token", "reg_tokens", "no_embed_class", "init_values"),
    *("pre_norm", "fc_norm", "projection_dim"),
)
NEVER_IN_TENSORS = ("norm_eps", "act_layer", "global_pool")
TENSORS, OWN, USER = "file", "its own config", "you"
DEFAULT = "the original release of ViT"
UNKNOWN_PREPARATION = (
    "unknown: no file beside the weights says how images are prepared; predict refuses without "
    "--mean and --std"
)
WANTED = ("img_size", "num_classes")  # fields of the model wanted, which may differ from the file


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """The architecture of a checkpoint's model."""

    config: ViTConfig  # with the file's image size and number of classes
    shown: dict[str, Any]  # fields that shapes show
    assumed: dict[str, str]  # fields that did not come from the file: value and source
    preparation_known: bool  # whether something says how images are prepared


@dataclass(frozen=True)
class Claim:
    """A statement about one config field."""

    field: str
    value: Any
    source: str  # who states it, e.g. "config.json"
    decisive: bool = False  # it must agree with all other decisive claims about its field


def fields_from_shapes(state: Mapping[str, Tensor], *, source: str) -> dict[str, Any]:
    """Return the config fields that the shapes of meta tensors show, `img_size` excepted."""
    pre_norm = "norm_pre.weight" in state
    fields: dict[str, Any] = {
        "class_token": "cls_token" in state,
        "distilled": "dist_token" in state or "head_dist.weight" in state,
        "reg_tokens": _axis(state, "reg_token", 1),
        "pre_norm": pre_norm,
        "patch_bias": "patch_embed.proj.bias" in state or not pre_norm,  # only CLIP has none
        "qkv_bias": any(name.endswith(".attn.qkv.bias") for name in state),
        "init_values": float(any(name.endswith(".ls1.gamma") for name in state)),
        "fc_norm": "fc_norm.weight" in state and "norm.weight" not in state,
        "num_classes": _rows(state, "head") or _rows(state, "head_dist"),
        "representation_size": _rows(state, "pre_logits.fc"),
        "projection_dim": _rows(state, "projection"),
    }
    if "attn_pool.latent" in state:
        fields["global_pool"] = "map"
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
    shown_by = ("cls_token", "norm.weight", "norm.bias", "fc_norm.weight", "patch_embed.proj.bias")
    if width := next(filter(None, (_axis(state, name, -1) for name in shown_by)), 0):
        fields["embed_dim"] = width
    kernel = state.get("patch_embed.proj.weight")
    if kernel is not None and kernel.ndim == 4:
        _, fields["in_chans"], fields["patch_size"], patch_width = kernel.shape
        if fields["patch_size"] != patch_width:
            raise CheckpointError(
                f"{source}: patches of {fields['patch_size']} x {patch_width} px are not "
                "supported; they must be square",
                hint=MODULE_HINT,
            )
    hidden = next(filter(None, (_rows(state, f"blocks.{block}.mlp.fc1") for block in blocks)), 0)
    second = (_axis(state, f"blocks.{block}.mlp.fc2.weight", 1) for block in blocks)
    gated = hidden == 2 * next(filter(None, second), 0)
    fields["mlp_layer"] = "swiglu" if gated and hidden else "mlp"
    hidden = hidden // 2 if gated else hidden
    if hidden and width:
        ratio = hidden / width
        if int(width * ratio) < hidden:  # despite rounding, int(width * ratio) is hidden
            ratio = math.nextafter(ratio, math.inf)
        fields["mlp_ratio"] = ratio
    return fields


def _axis(state: Mapping[str, Tensor], name: str, axis: int) -> int:
    """Size of a tensor along an axis; 0 where the file lacks the tensor."""
    tensor = state.get(name)
    return tensor.shape[axis] if tensor is not None and tensor.ndim else 0


def _rows(state: Mapping[str, Tensor], layer: str) -> int:
    """Output width of a layer; 0 where the file has neither its weight nor its bias."""
    return _axis(state, f"{layer}.weight", 0) or _axis(state, f"{layer}.bias", 0)


def resolve(
    state: Mapping[str, Tensor],
    *,
    layout: Layout,
    names: Iterable[str],
    metadata: Metadata,
    own: ViTConfig | None,
    variant: ViTConfig | None,
    overrides: Mapping[str, Any],
    num_heads: int | None,
    source: str,
    stem: str,
) -> Resolved:
    """Find the architecture; of several claims about a field, the first in precedence wins.

    Precedence: the user, the config inside a file of vit-export, the tensors, files beside the
    checkpoint, defaults of its library. Fields without any claim are those of the variant.

    `state` are meta tensors under our names, `names` those in the file, `own` is the config inside
    a file of vit-export, and `num_heads` is known where shapes show it. A model that is no variant
    is named `stem`.

    """
    inferred = fields_from_shapes(state, source=source)
    if num_heads:
        inferred["num_heads"] = num_heads
    own_fields = vars(own) if own else {}
    of_variant = {f"variant {variant.variant}": vars(variant)} if variant else {}
    by_origin = {OWN: own_fields, **metadata.fields, USER: overrides, **of_variant}
    cues = list(layout.says(names))
    said = [fields["no_embed_class"] for fields in by_origin.values() if "no_embed_class" in fields]
    said += [cue.fields["no_embed_class"][0] for cue in cues if "no_embed_class" in cue.fields]
    trained = trained_positions(
        state.get("pos_embed"),
        inferred,
        sizes={origin: fields.get("img_size") for origin, fields in by_origin.items()},
        wanted=USER,
        no_embed_class=parse_field("no_embed_class", said[0], False) if said else None,
        source=source,
    )
    if trained is not None:
        inferred["img_size"] = trained.img_size
        inferred["no_embed_class"] = trained.no_embed_class
        if trained.cut_edges:
            inferred["cut_edges"] = True
    decided = (*DECIDED, *(["num_heads"] if num_heads or own else []))
    plain = ViTConfig(variant="")
    settings = {
        name: parse_field(name, value, getattr(plain, name))
        for name, value in overrides.items()
        if name not in WANTED
    }
    stated = {USER: settings, OWN: own_fields, TENSORS: inferred, **metadata.fields}
    claims = [
        Claim(name, value, origin, origin == TENSORS or name in decided)
        for origin, fields in stated.items()
        for name, value in fields.items()
        if name not in IDENTITY and value is not None
    ]
    stated_fields = {claim.field for claim in claims} | (vars(variant) if variant else {}).keys()
    _check_asked(cues, stated_fields, source)
    defaults = [item for cue in cues for item in cue.fields.items()]
    for name, (value, origin) in (*defaults, *layout.assumed.items()):
        if name not in ("mean", "std") or len(value) == inferred.get("in_chans", len(value)):
            claims.append(Claim(name, value, origin))
    if inferred["fc_norm"] or not inferred["class_token"]:
        sign = "a norm after the pooling" if inferred["fc_norm"] else "no class token"
        claims.append(Claim("global_pool", "avg", f"its tensors, which show {sign}"))
    compared = decided if "img_size" in overrides else (*decided, "img_size")
    of_variants = [
        Claim(name, fields[name], origin, decisive=True)
        for origin, fields in of_variant.items()
        for name in compared
    ]
    _check_conflicts([*claims, *of_variants], source=source)
    if not any(claim.field == "num_heads" for claim in claims):
        claims.append(_heads(inferred, layout=layout, variant=variant, source=source))
    winners: dict[str, Claim] = {}
    for claim in claims:
        winners.setdefault(claim.field, claim)
    _check_channels(winners, inferred.get("in_chans", 0), source=source)
    known = own or variant or _matching(inferred)
    base = known or ViTConfig(variant=stem)
    if known is not None:
        for name in ("init_values", "mlp_ratio"):  # exact in the variant, not in the shapes
            if name in inferred and _agrees(Claim(name, getattr(known, name), ""), inferred):
                winners[name] = Claim(name, getattr(known, name), TENSORS)
    try:
        config = base.replace({name: claim.value for name, claim in winners.items()})
    except ConfigError as error:
        files = [name for name, fields in metadata.fields.items() if fields]
        origins = ["its tensors", *files, *(["your settings"] if settings else [])]
        raise (ConfigError if settings else CheckpointError)(
            f"cannot load {source}: {' and '.join(origins)} describe no network: {error}",
            hint="correct the wrong value there, or set it, e.g. with --set num_heads=N or --mean",
        ) from error
    assumed = _assumptions(claims, winners, base, f"variant {known.variant}" if known else DEFAULT)
    if trained is not None and trained.no_embed_class and not said:
        rows, columns = config.grid_hw
        assumed["no_embed_class"] = (
            f"True: pos_embed has as many positions as {rows} x {columns} patches, none for other "
            "tokens"
        )
    if trained is not None and isinstance(trained.img_size, tuple) and trained.origin != OWN:
        height, width = trained.img_size
        origin = "as set" if trained.origin == USER else f"from {trained.origin}"
        assumed["img_size"] = f"{height}x{width} px, {origin}: it has as many patches as the file"
    shown = {n: v for n, v in inferred.items() if n not in PARTS or v != getattr(plain, n)}
    prepared = bool(own or variant or {"mean", "std"} <= winners.keys())
    if not prepared:
        assumed["preprocess"] = UNKNOWN_PREPARATION
    return Resolved(
        config=config,
        shown=shown,
        assumed={**assumed, **metadata.notes},
        preparation_known=prepared,
    )


def _check_conflicts(claims: Sequence[Claim], *, source: str) -> None:
    """Raise one CheckpointError with every decisive claim that contradicts the file."""
    decisive = [claim for claim in claims if claim.decisive]
    in_file = {c.field: c for origin in (OWN, TENSORS) for c in decisive if c.source == origin}
    values = {name: claim.value for name, claim in in_file.items()}
    lines = [
        f"  ! {c.field}: {in_file[c.field].source} {values[c.field]}, {c.source} {c.value}"
        for c in decisive
        if c.field in values and not _agrees(c, values)
    ]
    if lines:
        matching = _matching(values)
        hint = f"--variant {matching.variant}" if matching else "leave --variant out"
        if any(line.startswith("  ! img_size") for line in lines):
            hint += ", or --img-size to resample the position embedding"
        raise CheckpointError(
            f"cannot load {source}: claims about it contradict its contents\n" + "\n".join(lines),
            hint=hint,
        )


def _agrees(claim: Claim, in_file: Mapping[str, Any]) -> bool:
    value = in_file[claim.field]
    if claim.field == "mlp_ratio":  # two ratios may make the same hidden width
        width = in_file.get("embed_dim", 0)
        return int(width * claim.value + 1e-6) == int(width * value)
    if claim.field == "init_values":  # tensors show only whether there is a LayerScale
        return bool(claim.value) == bool(value)
    return bool(claim.value == value)


def _matching(inferred: Mapping[str, Any], names: Sequence[str] = MATCHED) -> ViTConfig | None:
    """The first variant whose fields of these names are the same."""
    for config in VARIANTS.values():
        if all(
            _agrees(Claim(name, getattr(config, name), ""), inferred)
            for name in names
            if name in inferred
        ) and inferred.keys() >= {*names}:
            return config
    return None


def _heads(
    inferred: Mapping[str, Any], *, layout: Layout, variant: ViTConfig | None, source: str
) -> Claim:
    """The number of heads of the variant, or of one with the same widths and depth."""
    config = variant
    if config is None and layout.heads_in_table:
        config = _matching(inferred) or _matching(inferred, ("embed_dim", "depth", "mlp_ratio"))
    if config is not None:
        return Claim("num_heads", config.num_heads, f"variant {config.variant}")
    width = inferred.get("embed_dim", 0)
    fits = ", ".join(str(n) for n in range(1, width + 1) if width % n == 0 and width // n >= 4)
    raise CheckpointError(
        f"{source}: tensors do not show the number of heads (queries, keys and values have the "
        f"width {width}), and no file beside it states it",
        hint=f"give it with --set num_heads=N (one of {fits})",
    )


def _check_asked(cues: Iterable[Cue], stated: Container[str], source: str) -> None:
    """Raise CheckpointError for a field that a model of this kind must have stated."""
    for cue in cues:
        for name, values in cue.asked.items():
            if name not in stated:
                raise CheckpointError(
                    f"{source}: tensors do not show {name}, and no file beside it states it; "
                    f"models of this kind have different ones: {values}",
                    hint=f"give it with --set {name}=VALUE, or name the model with --variant",
                )


def _check_channels(winners: Mapping[str, Claim], channels: int, *, source: str) -> None:
    """Raise CheckpointError where a JSON file has not one mean and std for each channel."""
    for claim in (winners[name] for name in ("mean", "std") if name in winners):
        if claim.source in (CONFIG, PROCESSOR) and len(claim.value) != channels > 0:
            field = f"image_{claim.field}" if claim.source == PROCESSOR else claim.field
            raise CheckpointError(
                f"cannot load {source}: {claim.source} beside it has {len(claim.value)} values of "
                f"{field}, and the model has {channels} channels",
                hint="give --mean and --std, one number for each channel, or correct "
                f"{claim.source}",
            )


def _assumptions(
    claims: Sequence[Claim], winners: Mapping[str, Claim], base: ViTConfig, base_source: str
) -> dict[str, str]:
    """What did not come from the file: each field with its value and source."""
    assumed: dict[str, str] = {}
    preparation: dict[str, list[str]] = {}
    unknown_size = ["img_size"] if "img_size" not in winners else []
    for name in dict.fromkeys([*winners, *unknown_size, *NEVER_IN_TENSORS, *PREPARATION]):
        claim = winners.get(name) or Claim(name, getattr(base, name), base_source)
        if claim.source == USER:
            replaced = next((c for c in claims if c.field == name and c.source == CONFIG), None)
            if replaced and name not in PREPARATION:
                assumed[name] = f"{claim.value}, as set; {replaced.value}, from {CONFIG} otherwise"
        elif name in PREPARATION and claim.source != OWN:
            preparation.setdefault(claim.source, []).append(name)
        elif claim.source not in (TENSORS, OWN):
            assumed[name] = f"{claim.value}, from {claim.source}"
    if preparation:
        assumed["preprocess"] = "; ".join(
            f"{', '.join(names)} from {origin}" for origin, names in preparation.items()
        )
    return assumed

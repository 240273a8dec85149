"""Named variants: one frozen config per architecture, in one table.

Field and variant names are timm's, so that most checkpoints need no renaming; a name ends with the
tag of timm's weights where two variants have one architecture. Sources: ViT (arXiv 2010.11929,
Table 1), DeiT (2012.12877), DeiT III (2204.07118), FlexiViT (2212.08013), CLIP (2103.00020),
SigLIP (2303.15343), SigLIP 2 (2502.14786), MAE (2111.06377), DINO (2104.14294), DINOv2
(2304.07193), registers (2309.16588), DINOv3 (2508.10104).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vit_export.errors import ConfigError, UnknownVariantError, nearest

HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
NOT_IN_A_CHECKPOINT = (  # fields that its tensors do not show, or that an export may change
    *("img_size", "num_classes", "num_heads", "global_pool", "read_token"),
    *("norm_eps", "act_layer", "pos_embed", "no_embed_class", "normalize"),
    *("interpolate_antialias", "interpolate_offset"),
)
PREPARATION = (
    "mean",
    "std",
    "crop_pct",
    "crop_mode",
    "interpolation",
)  # fields of the image preparation
IDENTITY = ("variant", "alias", "hub")  # fields that name the variant; users cannot set them
CHOICES = {
    "global_pool": ("token", "avg", "map", "token_mean"),
    "pos_embed": ("learned", "sincos", "none"),
    "rope": ("none", "float32", "bfloat16"),
    "act_layer": ("gelu", "gelu_tanh", "quick_gelu"),
    "mlp_layer": ("mlp", "swiglu"),
    "crop_mode": ("center", "squash", "border"),
    "interpolation": ("bicubic", "bilinear", "nearest", "lanczos"),
}
_LIMITS: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    ("patch_size in_chans embed_dim depth num_heads", lambda x: x >= 1, "must be at least 1"),
    ("num_classes representation_size projection_dim", lambda x: x >= 0, "must be at least 0"),
    ("read_token reg_tokens", lambda x: x >= 0, "must be at least 0"),
    ("mlp_ratio norm_eps rope_theta", lambda x: 0 < x < math.inf, "must be positive and finite"),
    ("init_values interpolate_offset", lambda x: 0 <= x < math.inf, "must be 0 or positive"),
    ("drop_rate drop_path_rate", lambda x: 0 <= x < 1, "must lie in [0, 1)"),
)


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Architecture and image preparation of one Vision Transformer, checked on construction."""

    variant: str  # full name, e.g. "vit_base_patch16_224"
    alias: str = ""  # short name, e.g. "b16"

    # architecture
    img_size: int | tuple[int, int] = 224  # px; (height, width) when not square
    patch_size: int = 16  # px
    cut_edges: bool = False  # ignore pixels after the last whole patch (SigLIP so400m/14 at 384 px)
    in_chans: int = 3  # 1 reads grey images, 3 reads RGB
    num_classes: int = 1000  # 0: no head, the logits are the features
    embed_dim: int = 768  # D, the width of a token
    depth: int = 12  # number of encoder blocks
    num_heads: int = 12
    mlp_ratio: float = 4.0  # hidden width of the MLP = mlp_ratio * embed_dim
    mlp_layer: Literal["mlp", "swiglu"] = "mlp"
    act_layer: Literal["gelu", "gelu_tanh", "quick_gelu"] = "gelu"  # of "mlp"; "swiglu" has SiLU
    qkv_bias: bool = True
    patch_bias: bool = True  # CLIP: False
    class_token: bool = True
    distilled: bool = False  # DeiT: a second token with a head of its own
    reg_tokens: int = 0  # register tokens, which stand between the class token and the patches
    pos_embed: Literal["learned", "sincos", "none"] = "learned"
    no_embed_class: bool = False  # only patches have positions, and no class or register token
    interpolate_antialias: bool = True  # when positions are resampled; DINOv2: False
    interpolate_offset: float = 0.0  # patches; DINO and DINOv2 resample to 0.1 more than there are
    rope: Literal["none", "float32", "bfloat16"] = "none"  # DINOv3: the dtype of RoPE's periods
    rope_theta: float = 100.0  # the longest period of RoPE
    init_values: float = 0.0  # LayerScale's initial value; 0: no LayerScale
    pre_norm: bool = False  # CLIP: a norm before the blocks
    final_norm: bool = True  # a norm after the blocks
    fc_norm: bool = False  # it stands after the pooling, not before
    norm_eps: float = 1e-6  # Hugging Face: 1e-12, nn.TransformerEncoder: 1e-5
    global_pool: Literal["token", "avg", "map", "token_mean"] = "token"
    read_token: int = 0  # the token that `global_pool="token"` reads
    representation_size: int = 0  # width of the pre-logits layer; 0: none
    projection_dim: int = 0  # CLIP: width of the features after their projection; 0: none
    normalize: bool = False  # divide the features by their L2 norm

    # training
    drop_rate: float = 0.0  # dropout after the embedding, each projection and each MLP layer
    drop_path_rate: float = 0.0  # stochastic depth of the last block; earlier ones less

    # image preparation
    crop_pct: float = 0.9  # crop size / resized short side
    crop_mode: Literal["center", "squash", "border"] = "center"  # as in `Preprocess`
    interpolation: Literal["bicubic", "bilinear", "nearest", "lanczos"] = "bicubic"
    mean: tuple[float, ...] = HALF  # per channel, of pixels in [0, 1]
    std: tuple[float, ...] = HALF

    hub: str = ""  # Hugging Face repository of pretrained weights

    def __post_init__(self) -> None:
        _check_buildable(self)

    @property
    def image_hw(self) -> tuple[int, int]:
        """Image height and width in pixels."""
        return self.img_size if isinstance(self.img_size, tuple) else (self.img_size,) * 2

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = self.image_hw
        return height // self.patch_size, width // self.patch_size

    @property
    def num_prefix_tokens(self) -> int:
        """Number of tokens before the patches: class, distillation and register tokens."""
        return self.class_token + self.distilled + self.reg_tokens

    @property
    def num_prefix_positions(self) -> int:
        """Number of tokens before the patches that have a position."""
        return 0 if self.no_embed_class else self.num_prefix_tokens

    @property
    def num_tokens(self) -> int:
        """N, the length of the sequence."""
        rows, columns = self.grid_hw
        return self.num_prefix_tokens + rows * columns

    @property
    def mlp_dim(self) -> int:
        """Hidden width of the MLP: what its second layer reads."""
        return int(self.embed_dim * self.mlp_ratio)

    @property
    def pooled_width(self) -> int:
        """Width of the pooled tokens."""
        return self.embed_dim * (2 if self.global_pool == "token_mean" else 1)

    @property
    def num_features(self) -> int:
        """Width of the features, the input of the head."""
        return self.projection_dim or self.representation_size or self.pooled_width

    @property
    def num_params(self) -> int:
        """Number of parameters, embeddings included."""
        dim, hidden = self.embed_dim, self.mlp_dim
        patch = (self.in_chans * self.patch_size**2 + self.patch_bias) * dim
        tokens = self.num_prefix_tokens * dim
        rows, columns = self.grid_hw
        positions = (self.num_prefix_positions + rows * columns) * dim
        positions = positions if self.pos_embed == "learned" else 0
        qkv = 3 * dim * (dim + self.qkv_bias)
        first = hidden * (2 if self.mlp_layer == "swiglu" else 1)
        mlp = first * (dim + 1) + dim * (hidden + 1)
        block = 4 * dim + qkv + dim * (dim + 1) + mlp + 2 * dim * bool(self.init_values)
        norms = 2 * dim * (self.pre_norm + self.final_norm)
        pool = 3 * dim + 4 * dim * (dim + 1) + hidden * (dim + 1) + dim * (hidden + 1)
        pool = pool if self.global_pool == "map" else 0
        pre_logits = self.representation_size * (self.pooled_width + 1)
        projection = self.projection_dim * (self.representation_size or self.pooled_width)
        heads = (self.num_features + 1) * self.num_classes * (2 if self.distilled else 1)
        ends = norms + pool + pre_logits + projection + heads
        return patch + tokens + positions + self.depth * block + ends

    @property
    def not_in_a_checkpoint(self) -> dict[str, Any]:
        """The fields to pass along when the weights are loaded from a checkpoint again."""
        return {name: getattr(self, name) for name in NOT_IN_A_CHECKPOINT}

    def replace(self, overrides: Mapping[str, Any]) -> ViTConfig:
        """Return a copy with some fields changed, to values as `parse_field` reads them.

        A single number for mean or std counts for every channel.
        """
        known = list(vars(self))
        values: dict[str, Any] = {}
        for name, value in overrides.items():
            if name not in known:
                raise ConfigError(
                    f"cannot set {name!r}: a config has no such field{nearest(name, known)} "
                    f"(fields: {', '.join(known)})"
                )
            values[name] = parse_field(name, value, getattr(self, name))
        channels = values.get("in_chans", self.in_chans)
        for name in ("mean", "std"):
            if name in values:
                values[name] = per_channel(values[name], channels)
            elif len(current := getattr(self, name)) != channels > 0:
                values[name] = (sum(current) / len(current),) * channels
        return dataclasses.replace(self, **values)


def per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Return mean or std per channel; a single number counts for every channel."""
    return values * channels if len(values) == 1 and channels > 0 else values


def parse_field(name: str, value: Any, current: Any) -> Any:
    """Convert a value, also text such as "224x160" or "0.5,0.5,0.5", to the type of a field.

    `current` is a value of that type.
    """
    try:
        if name == "img_size":
            return _parse_size(value)
        if isinstance(current, tuple):
            if isinstance(value, int | float):
                return (float(value),)
            parts = value.split(",") if isinstance(value, str) else value
            return tuple(float(part) for part in parts)
        if isinstance(current, bool):
            return {"true": True, "1": True, "false": False, "0": False}[str(value).lower()]
        if isinstance(current, int) and float(value) != int(float(value)):
            raise ValueError
        return type(current)(value)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        if isinstance(current, tuple):
            expected = "numbers separated by commas, e.g. 0.5,0.5,0.5"
        else:
            kind = "a size" if name == "img_size" else type(current).__name__
            expected = f"{kind}, such as {current!r}"
        raise ConfigError(f"cannot set {name}={value!r}: expected {expected}") from error


def _parse_size(value: Any) -> int | tuple[int, int]:
    if isinstance(value, int):
        return value
    sizes = [int(part) for part in (value.lower().split("x") if isinstance(value, str) else value)]
    height, width = sizes * 2 if len(sizes) == 1 else sizes
    return height if height == width else (height, width)


def _check_buildable(config: ViTConfig) -> None:
    """Raise ConfigError with the reason when no network has this config."""
    for names, is_valid, limit in _LIMITS:
        for name in names.split():
            if not is_valid(value := getattr(config, name)):
                raise ConfigError(f"{name}={value}: {limit}")
    for axis, size in zip(("height", "width"), config.image_hw, strict=True):
        below = size // config.patch_size * config.patch_size
        if size < 1 or not below or (size != below and not config.cut_edges):
            near = ", ".join(str(s) for s in (below, below + config.patch_size) if s > 0)
            raise ConfigError(
                f"image {axis} {size} px is not a multiple of patch_size {config.patch_size}; "
                f"nearest sizes that are: {near}"
            )
    if config.embed_dim % config.num_heads:
        divisors = [n for n in range(1, config.embed_dim + 1) if config.embed_dim % n == 0]
        nearest_four = sorted(divisors, key=lambda n: abs(n - config.num_heads))[:4]
        raise ConfigError(
            f"embed_dim {config.embed_dim} is not divisible by num_heads {config.num_heads}; "
            f"nearest numbers of heads that divide it: {', '.join(map(str, sorted(nearest_four)))}"
        )
    if config.mlp_dim < 1:
        raise ConfigError(f"mlp_ratio={config.mlp_ratio}: the MLP would have no hidden layer")
    if config.read_token >= config.num_tokens:
        raise ConfigError(
            f"read_token={config.read_token}: the sequence has {config.num_tokens} tokens"
        )
    if config.pos_embed == "sincos" and config.embed_dim % 4:
        raise ConfigError(
            "pos_embed='sincos' needs an embed_dim divisible by 4 (a sine and a cosine for each "
            f"axis), not {config.embed_dim}"
        )
    for name in ("global_pool", "pos_embed", "rope", "act_layer", "mlp_layer"):
        _check_choice(name, getattr(config, name))
    if config.global_pool in ("token", "token_mean") and not config.class_token:
        raise ConfigError(
            f"global_pool={config.global_pool!r} reads the class token, and class_token is False: "
            "it needs 'avg' or 'map'"
        )
    if config.global_pool == "token_mean" and config.fc_norm:
        raise ConfigError("global_pool='token_mean' and fc_norm=True: no such model is known")
    if config.rope != "none" and config.embed_dim // config.num_heads % 4:
        raise ConfigError(
            "rope needs heads whose width is divisible by 4 (a sine and a cosine for each axis), "
            f"not {config.embed_dim // config.num_heads}"
        )
    plain = config.global_pool == "token" and config.read_token == 0 and config.class_token
    after = config.representation_size or config.projection_dim or config.fc_norm
    if config.distilled and (not plain or after or config.reg_tokens):
        raise ConfigError(
            "a distilled model reads its class and distillation tokens, and has no pre-logits layer, "
            "projection, fc_norm or register tokens: it needs global_pool='token', read_token=0, "
            "class_token=True, reg_tokens=0, fc_norm=False, representation_size=0 and "
            "projection_dim=0"
        )
    preparation = {name: getattr(config, name) for name in PREPARATION}
    check_preparation(channels=config.in_chans, **preparation)


def check_preparation(
    *,
    channels: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    crop_pct: float,
    crop_mode: str,
    interpolation: str,
    largest_crop: float = 1,
) -> None:
    """Raise ConfigError with the reason when no image can be prepared by these values."""
    for name, values in (("mean", mean), ("std", std)):
        if not all(map(math.isfinite, values)):
            raise ConfigError(f"{name}={values}: must be finite")
        if len(values) != channels:
            raise ConfigError(f"{name} has {len(values)} values for in_chans={channels}")
    if any(value <= 0 for value in std):
        raise ConfigError(f"std={std}: every value must be positive")
    if not 0 < crop_pct <= largest_crop:
        raise ConfigError(f"crop_pct={crop_pct}: must lie in (0, {largest_crop}]")
    _check_choice("crop_mode", crop_mode)
    _check_choice("interpolation", interpolation)


def _check_choice(name: str, value: str) -> None:
    if value not in (choices := CHOICES[name]):
        expected = f"expected one of {', '.join(choices)}{nearest(value, choices)}"
        raise ConfigError(f"{name}={value!r}: {expected}")


def _vit(variant: str, alias: str, **fields: Any) -> ViTConfig:
    return ViTConfig(variant=variant, alias=alias, **fields)


_TI: dict[str, Any] = {"embed_dim": 192, "depth": 12, "num_heads": 3}
_S: dict[str, Any] = {"embed_dim": 384, "depth": 12, "num_heads": 6}
_B: dict[str, Any] = {"embed_dim": 768, "depth": 12, "num_heads": 12}
_L: dict[str, Any] = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
_H: dict[str, Any] = {"embed_dim": 1280, "depth": 32, "num_heads": 16}
_SO: dict[str, Any] = {"embed_dim": 1152, "depth": 27, "num_heads": 16, "mlp_ratio": 3.7362}
_384: dict[str, Any] = {"img_size": 384, "crop_pct": 1.0}
_21K: dict[str, Any] = {"num_classes": 21843}
_IMAGENET: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
_DEIT: dict[str, Any] = {"distilled": True, **_IMAGENET}
_DEIT3: dict[str, Any] = {"no_embed_class": True, "init_values": 1e-6, **_IMAGENET}
_FLEXI: dict[str, Any] = {"img_size": 240, "crop_pct": 0.95, "no_embed_class": True}
_FEATURES: dict[str, Any] = {"num_classes": 0, **_IMAGENET}
_DINOV2: dict[str, Any] = {
    **_FEATURES,
    "img_size": 518,
    "patch_size": 14,
    "crop_pct": 1.0,
    "init_values": 1e-5,
}
_REG4: dict[str, Any] = {"reg_tokens": 4, "no_embed_class": True}
_DINOV3: dict[str, Any] = {
    **_FEATURES,
    "img_size": 256,
    "crop_pct": 1.0,
    "init_values": 1e-5,
    "reg_tokens": 4,
    "qkv_bias": False,
    "pos_embed": "none",
    "rope": "float32",
    "norm_eps": 1e-5,
    "global_pool": "avg",
}
_CLIP: dict[str, Any] = {
    "num_classes": 0,
    "pre_norm": True,
    "patch_bias": False,
    "norm_eps": 1e-5,
    "mean": CLIP_MEAN,
    "std": CLIP_STD,
    "crop_pct": 1.0,
}
_OPENAI: dict[str, Any] = {**_CLIP, "act_layer": "quick_gelu"}
_SIGLIP: dict[str, Any] = {
    "num_classes": 0,
    "class_token": False,
    "global_pool": "map",
    "act_layer": "gelu_tanh",
    "crop_pct": 1.0,
    "crop_mode": "squash",
    "interpolation": "bicubic",
}

FAMILIES: dict[str, tuple[ViTConfig, ...]] = {
    "ViT, AugReg": (
        _vit("vit_tiny_patch16_224", "ti16", **_TI, hub="timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"),
        _vit("vit_small_patch16_224", "s16", **_S, hub="timm/vit_small_patch16_224.augreg_in21k_ft_in1k"),
        _vit("vit_base_patch16_224", "b16", **_B, hub="timm/vit_base_patch16_224.augreg_in21k_ft_in1k"),
        _vit("vit_base_patch32_224", "b32", **_B, patch_size=32, hub="timm/vit_base_patch32_224.augreg_in21k_ft_in1k"),
        _vit("vit_large_patch16_224", "l16", **_L, hub="timm/vit_large_patch16_224.augreg_in21k_ft_in1k"),
        _vit("vit_large_patch32_224", "l32", **_L, patch_size=32),
        _vit("vit_huge_patch14_224", "h14", **_H, patch_size=14),
        _vit("vit_small_patch16_384", "s16_384", **_S, **_384, hub="timm/vit_small_patch16_384.augreg_in21k_ft_in1k"),
        _vit("vit_base_patch16_384", "b16_384", **_B, **_384, hub="timm/vit_base_patch16_384.augreg_in21k_ft_in1k"),
        _vit("vit_base_patch32_384", "b32_384", **_B, patch_size=32, **_384, hub="timm/vit_base_patch32_384.augreg_in21k_ft_in1k"),
        _vit("vit_large_patch16_384", "l16_384", **_L, **_384, hub="timm/vit_large_patch16_384.augreg_in21k_ft_in1k"),
    ),
    # with the pre-logits representation layer of the original release
    "ViT, ImageNet-21k": (
        _vit("vit_base_patch16_224_in21k", "b16_in21k", **_B, **_21K, representation_size=768, hub="google/vit-base-patch16-224-in21k"),
        _vit("vit_base_patch32_224_in21k", "b32_in21k", **_B, patch_size=32, **_21K, representation_size=768, hub="google/vit-base-patch32-224-in21k"),
        _vit("vit_large_patch16_224_in21k", "l16_in21k", **_L, **_21K, representation_size=1024, hub="google/vit-large-patch16-224-in21k"),
        _vit("vit_large_patch32_224_in21k", "l32_in21k", **_L, patch_size=32, **_21K, representation_size=1024, hub="google/vit-large-patch32-224-in21k"),
        _vit("vit_huge_patch14_224_in21k", "h14_in21k", **_H, patch_size=14, **_21K, representation_size=1280, hub="google/vit-huge-patch14-224-in21k"),
    ),
    # distilled: two tokens, two heads, the mean of both logits
    "DeiT": (
        _vit("deit_tiny_patch16_224", "deit_ti_plain", **_TI, **_IMAGENET, hub="timm/deit_tiny_patch16_224.fb_in1k"),
        _vit("deit_small_patch16_224", "deit_s_plain", **_S, **_IMAGENET, hub="timm/deit_small_patch16_224.fb_in1k"),
        _vit("deit_base_patch16_224", "deit_b_plain", **_B, **_IMAGENET, hub="timm/deit_base_patch16_224.fb_in1k"),
        _vit("deit_tiny_distilled_patch16_224", "deit_ti", **_TI, **_DEIT, hub="timm/deit_tiny_distilled_patch16_224.fb_in1k"),
        _vit("deit_small_distilled_patch16_224", "deit_s", **_S, **_DEIT, hub="timm/deit_small_distilled_patch16_224.fb_in1k"),
        _vit("deit_base_distilled_patch16_224", "deit_b", **_B, **_DEIT, hub="timm/deit_base_distilled_patch16_224.fb_in1k"),
        _vit("deit_base_distilled_patch16_384", "deit_b_384", **_B, **_DEIT, **_384, hub="timm/deit_base_distilled_patch16_384.fb_in1k"),
    ),
    "DeiT III": (
        _vit("deit3_small_patch16_224", "deit3_s", **_S, **_DEIT3, hub="timm/deit3_small_patch16_224.fb_in1k"),
        _vit("deit3_base_patch16_224", "deit3_b", **_B, **_DEIT3, hub="timm/deit3_base_patch16_224.fb_in1k"),
    ),
    "FlexiViT": (
        _vit("flexivit_small", "flexi_s", **_S, **_FLEXI, hub="timm/flexivit_small.1200ep_in1k"),
        _vit("flexivit_base", "flexi_b", **_B, **_FLEXI, hub="timm/flexivit_base.1200ep_in1k"),
    ),
    "CLIP": (  # features after the projection
        _vit("vit_base_patch32_clip_quickgelu_224", "clip_b32", **_B, patch_size=32, **_OPENAI, projection_dim=512, hub="openai/clip-vit-base-patch32"),
        _vit("vit_base_patch16_clip_quickgelu_224", "clip_b16", **_B, **_OPENAI, projection_dim=512, hub="openai/clip-vit-base-patch16"),
        _vit("vit_large_patch14_clip_quickgelu_224", "clip_l14", **_L, patch_size=14, **_OPENAI, projection_dim=768, hub="openai/clip-vit-large-patch14"),
        _vit("vit_large_patch14_clip_quickgelu_336", "clip_l14_336", **_L, patch_size=14, **_OPENAI, img_size=336, projection_dim=768, hub="openai/clip-vit-large-patch14-336"),
        _vit("vit_base_patch32_clip_224", "openclip_b32", **_B, patch_size=32, **_CLIP, projection_dim=512, hub="laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
        _vit("vit_base_patch16_clip_224", "openclip_b16", **_B, **_CLIP, projection_dim=512, hub="laion/CLIP-ViT-B-16-laion2B-s34B-b88K"),
        _vit("vit_large_patch14_clip_224", "openclip_l14", **_L, patch_size=14, **{**_CLIP, "mean": HALF, "std": HALF}, projection_dim=768, hub="laion/CLIP-ViT-L-14-laion2B-s32B-b82K"),
    ),
    "SigLIP": (
        _vit("vit_base_patch16_siglip_224", "siglip_b16", **_B, **_SIGLIP, hub="google/siglip-base-patch16-224"),
        _vit("vit_base_patch16_siglip_384", "siglip_b16_384", **_B, **_SIGLIP, img_size=384, hub="google/siglip-base-patch16-384"),
        _vit("vit_so400m_patch14_siglip_384", "siglip_so400m_384", **_SO, **_SIGLIP, img_size=384, patch_size=14, cut_edges=True, hub="google/siglip-so400m-patch14-384"),
        _vit("vit_base_patch16_siglip_224.v2_webli", "siglip2_b16", **_B, **_SIGLIP, hub="google/siglip2-base-patch16-224"),
        _vit("vit_base_patch16_siglip_384.v2_webli", "siglip2_b16_384", **_B, **_SIGLIP, img_size=384, hub="google/siglip2-base-patch16-384"),
    ),
    "MAE": (
        _vit("vit_base_patch16_224.mae", "mae_b16", **_B, **_FEATURES, hub="timm/vit_base_patch16_224.mae"),
    ),
    "DINO": (
        _vit("vit_small_patch16_224.dino", "dino_s16", **_S, **_FEATURES, hub="timm/vit_small_patch16_224.dino"),
        _vit("vit_base_patch16_224.dino", "dino_b16", **_B, **_FEATURES, hub="timm/vit_base_patch16_224.dino"),
    ),
    "DINOv2": (
        _vit("vit_small_patch14_dinov2", "dinov2_s14", **_S, **_DINOV2, hub="timm/vit_small_patch14_dinov2.lvd142m"),
        _vit("vit_base_patch14_dinov2", "dinov2_b14", **_B, **_DINOV2, hub="timm/vit_base_patch14_dinov2.lvd142m"),
        _vit("vit_large_patch14_dinov2", "dinov2_l14", **_L, **_DINOV2, hub="timm/vit_large_patch14_dinov2.lvd142m"),
        _vit("vit_small_patch14_reg4_dinov2", "dinov2_s14_reg", **_S, **_DINOV2, **_REG4, hub="timm/vit_small_patch14_reg4_dinov2.lvd142m"),
        _vit("vit_base_patch14_reg4_dinov2", "dinov2_b14_reg", **_B, **_DINOV2, **_REG4, hub="timm/vit_base_patch14_reg4_dinov2.lvd142m"),
        _vit("vit_large_patch14_reg4_dinov2", "dinov2_l14_reg", **_L, **_DINOV2, **_REG4, hub="timm/vit_large_patch14_reg4_dinov2.lvd142m"),
    ),
    "DINOv3": (  # features are the mean of the patches, as in timm
        _vit("vit_small_patch16_dinov3", "dinov3_s16", **_S, **_DINOV3, hub="timm/vit_small_patch16_dinov3.lvd1689m"),
        _vit("vit_base_patch16_dinov3", "dinov3_b16", **_B, **_DINOV3, hub="timm/vit_base_patch16_dinov3.lvd1689m"),
        _vit("vit_large_patch16_dinov3", "dinov3_l16", **_L, **_DINOV3, hub="timm/vit_large_patch16_dinov3.lvd1689m"),
    ),
    "small grey images": (
        _vit("vit_mnist_28", "mnist", img_size=28, patch_size=4, in_chans=1, num_classes=10, embed_dim=96, depth=6, num_heads=3,
             crop_pct=1.0, mean=(0.1307,), std=(0.3081,)),
    ),
}  # fmt: skip

VARIANTS: dict[str, ViTConfig] = {row.variant: row for rows in FAMILIES.values() for row in rows}
ALIASES: dict[str, str] = {row.alias: row.variant for row in VARIANTS.values()}

# of the weights in `hub`, by family; all others: apache-2.0
_LICENSES = {"CLIP": "mit", "MAE": "cc-by-nc-4.0", "DINOv3": "dinov3-license"}


def weights_license(config: ViTConfig) -> str:
    """Return the licence of a variant's published weights, "" where it has none.

    As the card of the repository names it, or, for OpenAI's CLIP, that of its code and weights.
    """
    family = next((name for name, rows in FAMILIES.items() if config in rows), "")
    return _LICENSES.get(family, "apache-2.0") if config.hub else ""


def find_variants(words: Iterable[str]) -> dict[str, tuple[ViTConfig, ...]]:
    """Return the variants, by family, whose name, alias or family holds every word."""
    found = {
        family: tuple(
            config
            for config in configs
            if all(
                word.lower() in f"{config.variant} {config.alias} {family}".lower()
                for word in words
            )
        )
        for family, configs in FAMILIES.items()
    }
    found = {family: configs for family, configs in found.items() if configs}
    if not found:
        names = [*VARIANTS, *ALIASES, *FAMILIES]
        asked = " ".join(words)
        raise UnknownVariantError(
            f"no variant is called {asked!r}{nearest(asked, names)}",
            hint="`vit-export variants` lists all variants",
        )
    return found


def get_variant(name: str, **overrides: Any) -> ViTConfig:
    """Return the config of a variant by full name or alias, changed as by `ViTConfig.replace`."""
    full = ALIASES.get(name, name)
    if full not in VARIANTS:
        raise UnknownVariantError(
            f"unknown variant {name!r}{nearest(name, [*VARIANTS, *ALIASES])}",
            hint="`vit-export variants` lists all variants",
        )
    return VARIANTS[full].replace(overrides)

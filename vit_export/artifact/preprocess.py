"""How an image is prepared for a model: a part of the manifest."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct, structs

from vit_export.errors import ConfigError, UsageError
from vit_export.variants import (
    CHOICES,
    HALF,
    PREPARATION,
    ViTConfig,
    check_preparation,
    parse_field,
    per_channel,
)

CROP_MODES = CHOICES["crop_mode"]
_COLORS = {1: "L", 3: "RGB"}  # by number of channels


class Preprocess(Struct, frozen=True, kw_only=True):
    """How an image becomes `pixel_values`, as timm's evaluation transform does it.

    Resize the short side to `floor(size / crop_pct)`, cut `size` out of the centre, scale to
    [0, 1], subtract `mean`, divide by `std`.

    Attributes:
        size: Height and width of the model's input in pixels.
        crop_pct: Crop size / resized short side.
        interpolation: `"bicubic"`, `"bilinear"`, `"nearest"` or `"lanczos"`, as Pillow does it.
        mean: Per channel, of pixels scaled to [0, 1].
        std: Per channel.
        color: `"RGB"`, `"L"` (grey), or `""` for another number of channels (arrays only).
        crop_mode: `"center"`; `"squash"` to resize both sides to `floor(size / crop_pct)`,
            whatever the aspect, before the crop; or `"border"` to resize the long side to it, and
            to fill what is missing with the mean colour.
        known: Whether mean and std are those of the model. Where neither its checkpoint nor the
            caller gave them they are placeholders, and `check_known` refuses to prepare images.

    Raises:
        ConfigError: On construction, when no image can be prepared by these values.
    """

    size: tuple[int, int]
    crop_pct: float = 0.9
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = HALF
    std: tuple[float, ...] = HALF
    color: str = "RGB"
    crop_mode: str = "center"
    known: bool = True

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise ConfigError(f"size={self.size}: expected a height and a width of at least 1")
        by_color = {color: count for count, color in _COLORS.items()}
        channels = by_color.get(self.color, len(self.mean))
        if channels < 1:
            raise ConfigError(f"in_chans={channels}: must be at least 1")
        preparation = {name: getattr(self, name) for name in PREPARATION}
        check_preparation(channels=channels, **preparation, largest_crop=sys.float_info.max)
        if self.color not in (choices := (*by_color, "")):
            raise ConfigError(f"color={self.color!r}: expected one of {choices}")

    @classmethod
    def of(cls, config: ViTConfig) -> Preprocess:
        """Return the preparation that a config names."""
        changes = {name: getattr(config, name) for name in PREPARATION}
        return cls.for_images(config.in_chans, config.image_hw).replace(changes)

    @classmethod
    def for_images(cls, channels: int, size: tuple[int, int]) -> Preprocess:
        """Return timm's defaults for images of a size, e.g. for a file of another tool."""
        values = (0.5,) * channels
        return cls(size=size, mean=values, std=values, color=_COLORS.get(channels, ""))

    def replace(self, changes: Mapping[str, Any]) -> Preprocess:
        """Return a copy with some fields of `PREPARATION` changed.

        Text is read as `ViTConfig.replace` reads it; one mean or std counts for every channel. With
        both, the preparation is known.
        """
        check_preprocess_fields(changes)
        values = {k: parse_field(k, value, getattr(self, k)) for k, value in changes.items()}
        for name in {"mean", "std"} & set(values):
            values[name] = per_channel(values[name], len(self.mean))
        current = {name: getattr(self, name) for name in PREPARATION}
        check_preparation(channels=len(self.mean), **(current | values))
        return structs.replace(self, **values, known=self.known or {"mean", "std"} <= set(values))

    def check_known(self, source: str) -> None:
        """Raise UsageError where mean and std are placeholders."""
        if not self.known:
            raise UsageError(
                f"{source}: does not say how its images are prepared, and mean and std cannot be "
                "guessed",
                hint="give --mean and --std as the model was trained with, and --crop-pct, "
                f"--crop-mode and --interpolation unless they are {self.crop_pct:g}, "
                f"{self.crop_mode} and {self.interpolation}; best when it is exported",
            )


def check_preprocess_fields(changes: Iterable[str]) -> None:
    """Raise UsageError for a field of the image preparation that cannot be set."""
    if unknown := sorted(set(changes) - set(PREPARATION)):
        raise UsageError(
            f"cannot change {', '.join(unknown)} of the image preparation: only "
            f"{', '.join(PREPARATION)}"
        )

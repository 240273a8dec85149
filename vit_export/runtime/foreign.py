"""Image preparation for a file of another tool, from what the user says."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from vit_export.artifact.manifest import Preprocess
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.errors import UsageError
from vit_export.variants import ViTConfig


def given_preprocess(path: str | os.PathLike[str], changes: Mapping[str, Any]) -> Preprocess:
    """Complete what the user said with what the file says.

    Args:
        path: An `.onnx` file, with or without a manifest.
        changes: Any of mean, std, crop_pct, interpolation, as `ViTConfig.replace` takes them.
            Where the file does not say, mean and std are needed, and timm's defaults stand for
            the others: crop_pct 0.9, interpolation `"bicubic"`.

    Raises:
        UsageError: The file takes no images (B, C, H, W) of a fixed size, or neither it nor
            the user says what mean or std is.
        ConfigError: A value that cannot work.
    """
    file = OnnxFile.read(path)
    known = file.manifest.preprocess if file.manifest is not None else None
    if known is None:
        shape = file.inputs[0].shape if file.inputs else ()
        if len(shape) != 4 or not all(isinstance(size, int) for size in shape[1:]):
            raise UsageError(
                f"{path}: takes ({', '.join(map(str, shape))}), not images (batch, channels, "
                "height, width) of a fixed size"
            )
        if missing := [name for name in ("mean", "std") if name not in changes]:
            raise UsageError(
                f"{path}: does not say how its images are prepared, and {' and '.join(missing)} "
                f"cannot be guessed; give {' and '.join(f'--{name}' for name in missing)} as the "
                "model was trained with (crop_pct is 0.9 and interpolation bicubic unless given)"
            )
        channels, height, width = (int(size) for size in shape[1:])
        known = Preprocess.of(
            ViTConfig(variant="foreign", img_size=height, patch_size=1).replace(
                {"img_size": (height, width), "in_chans": channels}
            )
        )
    checked = ViTConfig(
        variant="foreign", in_chans=len(known.mean), mean=known.mean, std=known.std
    ).replace(changes)
    return dataclasses.replace(known, **{name: getattr(checked, name) for name in changes})

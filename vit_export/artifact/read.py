"""Read the manifest of an artifact, whichever kind of file it is."""

import os
from collections.abc import Mapping
from typing import Any

from vit_export.artifact.engine_sidecar import Sidecar, is_engine
from vit_export.artifact.manifest import Manifest
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.preprocess import Preprocess
from vit_export.errors import UsageError


def read_manifest(path: str | os.PathLike[str]) -> Manifest | None:
    """Return the manifest of an .onnx file or an engine; `None` for a file of another tool."""
    if is_engine(path):
        return Sidecar.read(path).manifest
    return OnnxFile.read(path).manifest


def read_preprocess(path: str | os.PathLike[str], changes: Mapping[str, Any]) -> Preprocess:
    """Return how an artifact prepares images, with the changes that `Preprocess.replace` takes.

    A file of another tool needs mean and std, and takes timm's defaults for the rest.
    """
    manifest = read_manifest(path)
    if manifest is not None and manifest.embedded:
        raise UsageError(
            f"{path}: its graph prepares images itself, by the values it was exported with",
            hint=f"leave {', '.join(f'--{n}' for n in changes).replace('_', '-')} out, or export "
            "the model with other values",
        )
    if manifest is not None and manifest.preprocess is not None:
        changed = manifest.preprocess.replace(changes)
        changed.check_known(os.fspath(path))
        return changed
    inputs = manifest.inputs if manifest is not None else OnnxFile.read(path).inputs
    shape = inputs[0].shape if inputs else ()
    sizes = [size for size in shape[1:] if isinstance(size, int)]
    if len(shape) != 4 or len(sizes) != 3:
        raise UsageError(
            f"{path}: takes ({', '.join(map(str, shape))}), expected images (batch, channels, "
            "height, width) of a fixed size"
        )
    if missing := [name for name in ("mean", "std") if name not in changes]:
        raise UsageError(
            f"{path}: does not say how its images are prepared, and {' and '.join(missing)} "
            "cannot be guessed",
            hint=f"give {' and '.join(f'--{name}' for name in missing)} as the model was trained "
            "with (crop_pct is 0.9 and interpolation bicubic unless given)",
        )
    channels, height, width = sizes
    return Preprocess.for_images(channels, (height, width)).replace(changes)

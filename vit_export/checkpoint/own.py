"""Checkpoints of vit-export: safetensors with config and labels in their metadata."""

import os
from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError
from safetensors.torch import save_file

from vit_export.artifact.manifest import METADATA_KEY
from vit_export.checkpoint.metadata import Metadata
from vit_export.checkpoint.tensor_files import TensorFile
from vit_export.errors import CheckpointError, ConfigError, OutputError
from vit_export.model.vit import VisionTransformer
from vit_export.variants import ViTConfig


class _About(msgspec.Struct):
    config: dict[str, Any]
    labels: tuple[str, ...] = ()
    crop_mode: str = "center"  # of earlier versions, whose config lacks it


def save_checkpoint(
    model: VisionTransformer,
    path: str | os.PathLike[str],
    *,
    labels: tuple[str, ...] = (),
) -> None:
    """Write a model as a checkpoint that `load_checkpoint` reads without any settings.

    The file gets its name when it is complete; `labels` are names of the classes.
    """
    path = Path(path)
    about = _About(config=vars(model.config), labels=labels)
    state = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(state, temporary, metadata={METADATA_KEY: msgspec.json.encode(about).decode()})
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"cannot write the checkpoint {path}: {error}") from error


def read_config(file: TensorFile) -> tuple[ViTConfig, Metadata] | None:
    """Return the config and metadata that `save_checkpoint` wrote; None in other files."""
    text = file.metadata.get(METADATA_KEY)
    if text is None:
        return None
    try:
        about = msgspec.json.decode(text, type=_About)
        config = ViTConfig(variant=about.config["variant"]).replace(
            {"crop_mode": about.crop_mode, **about.config}
        )
    except (msgspec.DecodeError, KeyError, ConfigError) as error:
        raise CheckpointError(
            f"{file.path}: the config in its metadata key {METADATA_KEY!r} cannot be read "
            f"({error}); a newer vit-export may have written it",
            hint="pip install -U vit-export",
        ) from error
    return config, Metadata(labels=about.labels)

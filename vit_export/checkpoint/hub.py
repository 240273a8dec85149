"""Weights from a Hugging Face hub, into the ordinary cache of `huggingface_hub`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from vit_export.checkpoint.tensor_files import shard_names
from vit_export.errors import CheckpointError, UsageError
from vit_export.variants import VARIANTS, ViTConfig

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
REPOSITORY = re.compile(r"hf:(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A downloaded repository.

    Attributes:
        path: The weights file, in the cache.
        name: `owner/name@commit`.
        stem: Name of the repository alone.
    """

    path: Path
    name: str
    stem: str


def fetch(source: str, *, variant: ViTConfig | None) -> Fetched:
    """Download weights and what lies beside them, unless they are in the cache.

    The library's own switches hold: HF_HUB_OFFLINE, HF_ENDPOINT, HF_HOME, HF_TOKEN.

    Args:
        source: `hub` for the variant's repository, or `hf:owner/name[@revision]`.
        variant: Needed for `hub`.

    Raises:
        UsageError: A source that names no repository.
        CheckpointError: It cannot be downloaded, or holds no weights.
    """
    repository, revision = _repository(source, variant)
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise CheckpointError(
            f"cannot download {repository}: the package huggingface_hub is not installed; "
            "install it with: pip install 'vit-export[hub]'"
        ) from error

    def get(name: str) -> Path | None:
        """The file in the cache, or None where the repository has no such file."""
        try:
            return Path(huggingface_hub.hf_hub_download(repository, name, revision=revision))
        except errors.LocalEntryNotFoundError:
            cached = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision)
            if cached is huggingface_hub._CACHED_NO_EXIST:
                return None
            raise
        except errors.EntryNotFoundError:
            return None

    try:
        path = _get_all(get, repository)
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"cannot download {repository}: there is no such repository, or it is not open to "
            "you. Look at its spelling; for a private or gated one log in with: hf auth login"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(
            f"cannot download {repository}: it has no revision {revision!r}"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(_offline(repository, huggingface_hub.constants)) from error
    except (errors.HFValidationError, errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        raise CheckpointError(f"cannot download {repository}: {error}") from error
    return Fetched(
        path=path,
        name=f"{repository}@{path.parent.name}",
        stem=repository.rpartition("/")[2],
    )


def _repository(source: str, variant: ViTConfig | None) -> tuple[str, str | None]:
    """Repository and revision that a source names."""
    if source == "hub":
        if variant is not None and variant.hub:
            return variant.hub, None
        subject = f"{variant.variant} has" if variant else "without --variant there is"
        having = ", ".join(config.alias for config in VARIANTS.values() if config.hub)
        raise UsageError(
            f"cannot load weights from the hub: {subject} no repository to take them from. "
            f"Variants that have one: {having}; or name one with --weights hf:OWNER/NAME"
        )
    match = REPOSITORY.fullmatch(source)
    if match is None:
        raise UsageError(
            f"cannot load weights from {source!r}: expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION"
        )
    return match["id"], match["revision"]


def _get_all(get: Callable[[str], Path | None], repository: str) -> Path:
    """The weights file, once everything that belongs to it lies beside it."""
    weights = next((path for name in WEIGHTS if (path := get(name)) is not None), None)
    if weights is None:
        raise CheckpointError(
            f"{repository} holds no weights that vit-export reads: expected one of "
            f"{', '.join(WEIGHTS)}"
        )
    if weights.name.endswith(".index.json"):
        for shard in shard_names(weights):
            if get(shard) is None:
                raise CheckpointError(f"{repository}: {weights.name} names {shard}, it is absent")
    config = get("config.json")
    if config is not None and '"model_type"' in config.read_text("utf-8"):
        get("preprocessor_config.json")  # timm's repositories have none
    return weights


def _offline(repository: str, constants: ModuleType) -> str:
    """What to do when the hub cannot be asked and the cache lacks a file."""
    if constants.is_offline_mode():
        return (
            f"cannot load {repository}: it is not (or not completely) in the cache "
            f"{constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to download it. Unset "
            f"HF_HUB_OFFLINE, or run `hf download {repository}` where there is a network and "
            "copy the cache"
        )
    return (
        f"cannot load {repository}: {constants.ENDPOINT} does not answer as a hub should, and "
        f"the cache {constants.HF_HUB_CACHE} has no complete copy. Look at the network and at "
        "HF_ENDPOINT, or give a weights file with --weights PATH"
    )

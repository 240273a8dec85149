"""Download weights from a Hugging Face hub into the cache of `huggingface_hub`."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from vit_export.checkpoint.metadata import CARD, CONFIG, OPENCLIP_CONFIG, PROCESSOR
from vit_export.errors import CheckpointError, UsageError
from vit_export.variants import VARIANTS, ViTConfig

FILE_NAMES = (
    *("model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
BESIDE = (  # files that describe the weights
    *(CONFIG, PROCESSOR, "processor_config.json", OPENCLIP_CONFIG, CARD),
)
DOWNLOADS = (  # tried in turn until there are weights
    [*FILE_NAMES[:2], "model-*.safetensors", *BESIDE],
    [*FILE_NAMES[2:], "pytorch_model-*.bin", *BESIDE],
)
REPOSITORY = re.compile(r"hf:(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True, kw_only=True)
class Location:
    """Path of weights, and their name without the folders of this machine."""

    path: Path  # of a file or folder
    name: str  # base name, or `owner/name@commit` of a repository
    stem: str  # name for a model that is no variant


def fetch(source: str, *, variant: ViTConfig | None, weights: bool = True) -> Location:
    """Download weights and the JSON files beside them, unless they are in the cache.

    A source is `hub`, for the repository of the variant, or `hf:owner/name[@revision]`. Without
    `weights` only the JSON files are downloaded, and the path is that of config.json.
    huggingface_hub honours HF_HUB_OFFLINE, HF_ENDPOINT, HF_HOME and HF_TOKEN.
    """
    repository, revision = _repository(source, variant)
    failed = f"cannot download {repository}"
    try:
        from huggingface_hub import constants, errors, snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"{failed}: the package huggingface_hub is not installed",
            hint="pip install 'vit-export[hub]'",
        ) from error
    try:
        path = _download(snapshot_download, repository, revision, weights=weights)
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{failed}: there is no such repository, or you have no access",
            hint="check the spelling; for a private or gated repository run: hf auth login",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{failed}: it has no revision {revision!r}") from error
    except errors.LocalEntryNotFoundError as error:
        raise _not_cached(repository, constants) from error
    except (errors.HFValidationError, errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        raise CheckpointError(f"{failed}: {error}") from error
    if path is None and constants.is_offline_mode():
        raise _not_cached(repository, constants)
    if path is None:
        kind, names = ("weights", FILE_NAMES) if weights else ("settings", (CONFIG,))
        raise CheckpointError(f"{repository} holds no {kind}: expected one of {', '.join(names)}")
    name = f"{repository}@{path.parent.name}"
    return Location(path=path, name=name, stem=repository.rpartition("/")[2])


def _repository(source: str, variant: ViTConfig | None) -> tuple[str, str | None]:
    """Repository and revision that a source names."""
    if source == "hub":
        if variant is not None and variant.hub:
            return variant.hub, None
        reason = f"{variant.variant} has no repository" if variant else "--variant is missing"
        available = ", ".join(config.alias for config in VARIANTS.values() if config.hub)
        raise UsageError(
            f"cannot load weights from the hub: {reason}. Variants that have one: {available}",
            hint="name a repository with --weights hf:OWNER/NAME",
        )
    match = REPOSITORY.fullmatch(source)
    if match is None:
        raise UsageError(
            f"cannot load weights from {source!r}: expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION"
        )
    return match["id"], match["revision"]


def _download(
    snapshot: Callable[..., str], repository: str, revision: str | None, *, weights: bool
) -> Path | None:
    """The weights file (or config.json) in the cache; None where the repository has none."""
    for patterns in DOWNLOADS if weights else (BESIDE,):
        folder = snapshot(repository, revision=revision, allow_patterns=patterns)
        for name in FILE_NAMES if weights else (CONFIG,):
            if (path := Path(folder, name)).exists():
                return path
    return None


def _not_cached(repository: str, constants: ModuleType) -> CheckpointError:
    """The error where the hub does not answer and the cache has no complete copy."""
    reason = f"{constants.ENDPOINT} does not answer as a hub"
    hint = "check the network and HF_ENDPOINT, or give a weights file with --weights PATH"
    if constants.is_offline_mode():
        reason = "HF_HUB_OFFLINE forbids to download it"
        hint = (
            f"unset HF_HUB_OFFLINE, or run `hf download {repository}` on a machine with a network "
            "and copy its cache"
        )
    return CheckpointError(
        f"cannot load {repository}: {reason}, and the cache {constants.HF_HUB_CACHE} has no "
        "complete copy",
        hint=hint,
    )

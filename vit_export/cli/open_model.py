"""Open the artifact of a command that runs it on images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vit_export.cli.console import note_rejected
from vit_export.cli.options import PreparationOptions, RunOptions

if TYPE_CHECKING:  # they import numpy, and --help must answer at once
    from vit_export.runtime import Model


@dataclass(frozen=True, kw_only=True)
class ModelOptions(RunOptions, PreparationOptions):
    """What runs an artifact on images, and how these are prepared."""

    def open_model(self, artifact: str, labels: Sequence[str] | None = None) -> "Model":
        """Load an artifact; it is closed when the command ends."""
        from vit_export.runtime import load, load_engine

        provider, preprocess = self.providers(artifact), self.preprocess_of(artifact)
        if self.trust_host_code or self.runtime_cache is not None:
            model = load_engine(
                artifact,
                provider=provider,
                device=self.device,
                allow_host_code=self.trust_host_code,
                runtime_cache=self.runtime_cache,
                preprocess=preprocess,
                labels=labels,
            )
        else:
            model = load(artifact, provider=provider, device=self.device,
                         preprocess=preprocess, labels=labels)  # fmt: skip
        click.get_current_context().with_resource(model)
        note_rejected(artifact, provider, model.provider, model.rejected)
        return model


def image_files(images: Sequence[str]) -> list[Path]:
    """Return the files that paths, folders and patterns name."""
    from vit_export.images.folder import list_images

    return [file for image in images for file in list_images(image)]


def provider_line(model: "Model") -> str:
    """Return a line that says what ran a model."""
    beside = f" ({count} nodes on shapes run on the CPU)" if (count := model.nodes_on_cpu) else ""
    return f"provider: {model.provider}{beside}"

"""How far a model that merges tokens agrees with the full model, on real images.

Merging changes the outputs by design, so there is no tolerance: the certificate states what was
measured.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vit_export.artifact.golden import pictures
from vit_export.artifact.manifest import Manifest, Stage, TensorSpec
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.vocabulary import LOGITS
from vit_export.errors import GateError, UsageError
from vit_export.gate.accuracy import RealImages, compare_classes, read_images, real_logits
from vit_export.gate.distance import cosines
from vit_export.images.folder import MAX_USER_PICTURES
from vit_export.model.vit import VisionTransformer
from vit_export.pipeline.settings import ExportSettings
from vit_export.pipeline.source import LoadedSource
from vit_export.progress import Progress
from vit_export.runner import Outputs
from vit_export.runtime.onnxruntime.runner import OrtRunner

AGREEMENT_STAGE = "full model -> merged tokens"


class _FullModel:
    """Runs the full torch model in float32."""

    path = Path("torch")
    provider = "torch"
    manifest: Manifest | None = None
    profile: tuple[int, int, int] | None = None

    def __init__(self, model: VisionTransformer, inputs: tuple[TensorSpec, ...]) -> None:
        self._model, self.inputs = model, inputs

    def run(self, feeds: Mapping[str, Any]) -> Outputs:
        (pixels,) = feeds.values()
        with torch.inference_mode():
            return {LOGITS: self._model(torch.from_numpy(pixels)).numpy()}


@dataclass(frozen=True)
class FullModelLogits:
    """Logits of the full model on real images."""

    images: RealImages
    logits: NDArray[np.float32]  # (S, num_classes)

    @classmethod
    def compute(
        cls, loaded: LoadedSource, source: str | os.PathLike[str], progress: Progress
    ) -> "FullModelLogits":
        """Run the full model of a source that merges tokens, on images as `list_images` takes."""
        if loaded.full_model is None:
            raise ValueError("the model does not merge tokens")
        images = read_images(source, loaded.preprocess, loaded.labels)
        runner = _FullModel(loaded.full_model, loaded.inputs)
        logits = real_logits(runner, images, loaded.preprocess, progress=progress)
        return cls(images, logits)

    def compare(
        self, packed: OnnxFile, manifest: Manifest, golden_samples: int, progress: Progress
    ) -> Stage:
        """Run an artifact on the same images, and return the entry of its certificate.

        `golden_samples` is the number of images in its golden file.
        """
        if manifest.preprocess is None:
            raise ValueError("the artifact takes no images")
        runner = OrtRunner(packed.path, provider="cpu")
        found = real_logits(runner, self.images, manifest.preprocess, progress=progress)
        runner.release()
        for who, logits in (("the full model", self.logits), ("the exported model", found)):
            if wrong := int((~np.isfinite(logits).all(axis=1)).sum()):
                raise GateError(
                    f"{AGREEMENT_STAGE}: {who} gives NaN or infinite logits for {wrong} of "
                    f"{len(self.images)} images; nothing was written"
                )
        accuracy = compare_classes(
            found.argmax(axis=1), self.logits.argmax(axis=1), self.images.targets
        )
        angles = cosines(found.astype(np.float64), self.logits.astype(np.float64))
        candidates = len(pictures(1, 1, 1)) + min(len(self.images), MAX_USER_PICTURES)
        notes = [
            f"{accuracy.text('full model')}; the cosine of the logits is {angles.mean():.4f} on "
            f"average, at least {angles.min():.4f}"
        ]
        if golden_samples < candidates:
            notes.append(
                f"{candidates - golden_samples} of {candidates} golden images are left out: "
                "rounding to float32 can change which of their tokens are merged"
            )
        return Stage(
            name=AGREEMENT_STAGE,
            provider=runner.provider,
            samples=len(self.images),
            cosine=float(angles.min()),
            top1_agreement=accuracy.agreement,
            passed=None,
            reasons=("token merging changes the outputs by design, so no tolerance applies",),
            accuracy=accuracy.text("full model"),
            real_images=accuracy.images,
            real_agreement=accuracy.agreement,
            accuracy_drop=accuracy.drop,
            notes=tuple(notes),
        )


def check_merging(settings: ExportSettings) -> None:
    """Raise UsageError where tokens are merged and no images show what that costs."""
    if settings.merge_tokens is not None and settings.images is None:
        raise UsageError(
            "--merge-tokens needs --images PATH: merging changes the outputs, and real images "
            "show how much",
            hint="give a folder of images like those that the model will see",
        )

"""The torch model of an artifact, run as its users run it: what an artifact has to beat."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vit_export.artifact.manifest import Manifest
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.checkpoint.load import load_checkpoint
from vit_export.errors import ArtifactError, ProviderError, UsageError
from vit_export.model.vit import VisionTransformer, create_model

PROVIDERS = ("cpu", "cuda")  # of those that artifacts have, what torch can run on


class TorchRunner:
    """torch in float32 with the architecture that an artifact's manifest holds.

    Attention is torch's fused `scaled_dot_product_attention`, as timm's and Hugging Face's
    models call it. TF32 stays off, as it is for the artifacts.

    Args:
        path: The artifact; only its manifest is read.
        weights: Checkpoint; `None` where the manifest says that weights came from a seed.
        layout: How the checkpoint names its tensors; recognised by default.
        provider: `"cpu"`, `"cuda"` or `"auto"`.
        compiled: Whether `torch.compile` compiles it, once for each batch size.
        threads: CPU threads of one run; by default torch's choice.

    Raises:
        ArtifactError: The artifact does not say which architecture it is.
        UsageError: Its weights came from a checkpoint, and none is given.
        CheckpointError: The checkpoint does not fit.
        ProviderError: torch cannot run there, or cannot compile.
    """

    precision = "fp32"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        weights: str | None = None,
        layout: str | None = None,
        provider: str = "auto",
        compiled: bool = False,
        threads: int | None = None,
    ) -> None:
        file = OnnxFile.read(path)
        self.path = Path(path)
        self.manifest: Manifest | None = file.manifest
        self.inputs = tuple(
            type(spec)(spec.name, "float32", spec.shape) for spec in file.inputs
        )  # also of an artifact that takes float16
        self.provider = _resolve(provider)
        if threads is not None:
            torch.set_num_threads(threads)
        torch.backends.cudnn.allow_tf32 = False
        model = torch_model(file, weights, layout).set_attention("op").to(self.provider)
        self._forward: Callable[[Tensor], Tensor] = model
        self._output = "logits" if model.config.num_classes else "features"
        if compiled:
            self._forward = torch.compile(model, dynamic=False)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, NDArray[np.generic]]:
        """Compute the logits (B, num_classes) of images (B, C, H, W), back in host memory.

        Raises:
            ProviderError: torch fails, or its compiler does.
        """
        (images,) = feeds.values()
        try:
            with torch.inference_mode():
                output = self._forward(torch.from_numpy(images).to(self.provider)).cpu()
        except RuntimeError as error:  # torch's compiler raises kinds of it
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise ProviderError(
                f"torch {torch.__version__} on {self.provider!r} fails: "
                f"{type(error).__name__}: {lines[0] if lines else 'it said nothing'}"
            ) from error
        return {self._output: output.numpy()}


def torch_model(file: OnnxFile, weights: str | None, layout: str | None) -> VisionTransformer:
    """The model that an artifact was exported from.

    Args:
        file: The artifact.
        weights: Checkpoint; `None` where the manifest says that weights came from a seed.
        layout: How the checkpoint names its tensors.
    """
    manifest = file.manifest
    if manifest is None or not manifest.config:
        raise ArtifactError(
            f"{file.path.name}: does not say which architecture it is (no vit-export manifest "
            "with a config), so torch cannot run beside it; leave --against out"
        )
    config = manifest.vit_config(file.path.name)
    if weights is not None:
        overrides = config.not_in_a_checkpoint
        reset_head = manifest.weights.reset_head
        return load_checkpoint(
            weights, overrides=overrides, layout=layout, reset_head=reset_head
        ).model
    if manifest.weights.seed is None:
        raise UsageError(
            f"--against torch: the weights of {file.path.name} came from "
            f"{manifest.weights.source!r}; give them with --weights FILE"
        )
    return create_model(config, seed=manifest.weights.seed)


def _resolve(provider: str) -> str:
    if provider not in (*PROVIDERS, "auto"):
        raise ProviderError(f"torch does not run on {provider!r}: it knows {', '.join(PROVIDERS)}")
    if provider == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if provider == "cuda" and not torch.cuda.is_available():
        raise ProviderError(
            f"torch {torch.__version__} finds no usable GPU; see: vit-export doctor"
        )
    return provider

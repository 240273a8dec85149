"""Child process that times torch, eager or compiled, with the model of an artifact."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit_export.artifact.manifest import Manifest, TensorSpec
from vit_export.artifact.read import read_manifest
from vit_export.artifact.vocabulary import FEATURES, LOGITS
from vit_export.benchmark.worker import serve
from vit_export.checkpoint.load import load_checkpoint
from vit_export.errors import ArtifactError, ProviderError, UsageError
from vit_export.model.vit import VisionTransformer, create_model
from vit_export.runner import Outputs


def main() -> None:
    """Answer the orders of a benchmark about the torch model of an artifact."""
    serve(TorchRunner)


class TorchRunner:
    """Runs an artifact's model in torch, float32, as users of torch run it.

    Attention is torch's fused `scaled_dot_product_attention`, as in the models of timm and Hugging
    Face. TF32 stays off, as it is for the artifacts. `torch.compile` compiles once for each batch
    size.
    """

    profile: tuple[int, int, int] | None = None

    def __init__(
        self,
        path: str | os.PathLike[str],  # only the manifest is read
        *,
        weights: str | None = None,
        layout: str | None = None,
        provider: str = "auto",
        compiled: bool = False,
        threads: int | None = None,
        device: int | None = None,
    ) -> None:
        self.path = Path(path)
        manifest = read_manifest(path)
        if manifest is None:
            raise ArtifactError(
                f"{self.path.name}: has no vit-export manifest, so its architecture is unknown",
                hint="leave --against out",
            )
        if manifest.embedded:
            raise ArtifactError(
                f"{self.path.name}: its graph prepares images too, which the torch model does not",
                hint="compare the same model exported without --preprocess embedded",
            )
        has_gpu = torch.cuda.is_available()
        if provider == "cuda" and not has_gpu:
            raise ProviderError(
                f"torch {torch.__version__} finds no usable GPU", hint="see: vit-export doctor"
            )
        auto = "cuda" if has_gpu else "cpu"
        self.provider = auto if provider == "auto" else provider
        self._device = torch.device(self.provider, device or 0)
        self.manifest: Manifest | None = manifest.replace(precision="fp32")
        # float32 for an artifact that takes float16 too
        self.inputs = tuple(TensorSpec(s.name, "float32", s.shape) for s in manifest.inputs)
        if threads is not None:
            torch.set_num_threads(threads)
        torch.backends.cudnn.allow_tf32 = False
        model = _torch_model(self.path.name, manifest, weights, layout)
        model.set_attention("op").to(self._device)
        self._forward: Callable[[Tensor], Tensor] = model
        if compiled:
            self._forward = torch.compile(model, dynamic=False)
        self._output = LOGITS if model.config.num_classes else FEATURES

    def run(self, feeds: Mapping[str, Any]) -> Outputs:
        """Compute the first output, float32 (B, K), of images (B, C, H, W), in host memory."""
        (images,) = feeds.values()
        try:
            with torch.inference_mode():
                output = self._forward(torch.from_numpy(images).to(self._device)).cpu()
        except RuntimeError as error:  # the base class of the compiler's errors
            first_line = next(filter(str.strip, str(error).splitlines()), "no message")
            raise ProviderError(
                f"torch {torch.__version__} on {self.provider!r} fails: "
                f"{type(error).__name__}: {first_line}"
            ) from error
        return {self._output: output.numpy()}


def _torch_model(
    name: str, manifest: Manifest, weights: str | None, layout: str | None
) -> VisionTransformer:
    """Build the model that an artifact was exported from."""
    config = manifest.vit_config(name)
    if weights is not None:
        return load_checkpoint(
            weights,
            overrides=config.not_in_a_checkpoint,
            layout=layout,
            reset_head=manifest.weights.reset_head,
        ).model
    if manifest.weights.seed is None:
        raise UsageError(
            f"--against torch: the weights of {name} came from {manifest.weights.source!r}",
            hint="give them with --weights FILE",
        )
    return create_model(config, seed=manifest.weights.seed)

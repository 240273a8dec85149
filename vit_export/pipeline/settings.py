"""Settings of the doors `export` and `validate`."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vit_export.artifact.preprocess import Preprocess
from vit_export.artifact.vocabulary import (
    ACTIVATIONS,
    LOGITS,
    OPSETS,
    RESIZE_FORMS,
    TOKENS,
    Activation,
)
from vit_export.errors import UsageError, check_known
from vit_export.quantization.settings import QuantizeSettings


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """How to export a model.

    Attributes:
        layout: Naming scheme of the checkpoint's tensors; recognised by default.
        reset_head: Replace the checkpoint's head with a zero-initialised one, for a different
            number of classes.
        seed: Seed of the random weights of a variant that is exported without a checkpoint.
        random_init: Give a model of timm or transformers random weights, instead of downloading
            its pretrained ones.
        overrides: Config fields to change, e.g. `{"img_size": 384}`.
        batch: A fixed batch size; dynamic by default.
        dynamic_size: Make height and width dynamic (multiples of the patch size); the graph
            resamples the position embedding.
        opset: ONNX operator set; 20 by default, 23 with `attention="op"`.
        attention: `"decomposed"`, or `"op"` for one Attention node per block.
        outputs: Any of `"logits"`, `"features"`, `"tokens"`.
        labels: Class names.
        text_embeddings: An .npz file of names and vectors that the text tower of an image-text
            model made; they become the head of a zero-shot classifier.
        preprocess: Any of mean, std, crop_pct, crop_mode and interpolation that differ from the
            variant's.
        activation: How logits become scores: `"softmax"`, `"sigmoid"` or `"none"`. By default what
            the checkpoint says; a module that ends in a softmax or sigmoid has `"none"`.
        embed_preprocess: Put the image preparation into the graph: the input is then `image`, uint8
            (B, H, W, 3) of any size, and probabilities and the best classes are outputs too.
        resize: How such a graph resizes images: `"op"`, or `"matmul"` for runtimes whose Resize has
            no antialiasing.
        images: Folder of images to measure on, besides the synthetic golden images.
        simplify: Simplify the graph.
        merge_tokens: Merge so many pairs of patch tokens in each block; needs `images`, which show
            what that costs. The outputs are no longer those of the full model.
        external_data: Store the weights beside the file; above 2 GiB they always are.
        quantize: Convert the fp32 artifact to a narrower precision, which is measured too; the
            fp32 artifact is not kept.

    Raises:
        UsageError: On construction, for a batch size, opset, form of attention or activation that
            no export can have.
    """

    layout: str | None = None
    reset_head: bool = False
    seed: int = 0
    random_init: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)
    batch: int | None = None
    dynamic_size: bool = False
    opset: int | None = None
    attention: str = "decomposed"
    outputs: Sequence[str] = (LOGITS,)
    labels: Sequence[str] = ()
    text_embeddings: str | os.PathLike[str] | None = None
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    activation: Activation | None = None
    embed_preprocess: bool = False
    resize: str = RESIZE_FORMS[0]
    images: str | os.PathLike[str] | None = None
    merge_tokens: int | None = None
    simplify: bool = True
    external_data: bool = False
    quantize: QuantizeSettings | None = None

    def __post_init__(self) -> None:
        if self.batch is not None and self.batch < 1:
            raise UsageError(f"batch size {self.batch}: must be at least 1")
        check_known("attention form", self.attention, OPSETS)
        check_known("form of resize", self.resize, RESIZE_FORMS)
        if self.embed_preprocess and self.dynamic_size:
            raise UsageError(
                "--preprocess embedded prepares images for one size, and --dynamic-size takes many",
                hint="leave --dynamic-size out: the embedded file takes images of any size",
            )
        oldest = OPSETS["op"] if self.attention == "op" else 18
        if self.opset is not None and not oldest <= self.opset <= 25:
            raise UsageError(
                f"--opset {self.opset}: expected {oldest} to 25 with --attention {self.attention}"
            )
        if self.activation is not None:
            check_known("activation", self.activation, ACTIVATIONS)
        if self.merge_tokens is not None:
            self._check_merging()

    def _check_merging(self) -> None:
        """Raise UsageError for settings that merging tokens contradicts."""
        if self.dynamic_size:
            raise UsageError(
                "--merge-tokens needs a fixed image size, and so a fixed number of tokens",
                hint="export one file per size with --img-size",
            )
        if self.attention == "op":
            raise UsageError(
                "--attention op: merged tokens count in attention by their size, and the Attention "
                "node of ONNX Runtime takes no bias of that shape (batch, 1, 1, tokens)",
                hint="leave --attention op or --merge-tokens out",
            )
        if TOKENS in self.outputs:
            raise UsageError(
                "--outputs tokens: with --merge-tokens there is no token for each patch any more",
                hint="leave tokens or --merge-tokens out",
            )
        if LOGITS not in self.outputs:
            raise UsageError(
                "--merge-tokens needs logits among --outputs: their top-1 class is compared with "
                "that of the full model"
            )


@dataclass(frozen=True, kw_only=True)
class ValidateSettings:
    """How to run the gate on an artifact.

    Attributes:
        golden: Golden file; by default the one beside the artifact.
        weights: Checkpoint to compute the float64 reference from again, with torch, instead of
            reading a golden file.
        layout: Naming scheme of the checkpoint's tensors; recognised by default.
        provider: Execution provider that runs the artifact, or several to try in their order.
        device: Number of the GPU, as CUDA counts them.
        allow_host_code: Let a version-compatible engine run the host code in its plan.
        runtime_cache: File of the kernels that TensorRT-RTX compiled on this machine.
        preprocess: How golden images are normalised, for an artifact without a manifest.
        trace: Measure every encoder block even when the gate passes.

    Raises:
        UsageError: On construction, for a layout without a checkpoint, or a golden file
            together with one.
    """

    golden: str | os.PathLike[str] | None = None
    weights: str | os.PathLike[str] | None = None
    layout: str | None = None
    provider: str | Sequence[str] = "auto"
    device: int | None = None
    allow_host_code: bool = False
    runtime_cache: str | os.PathLike[str] | None = None
    preprocess: Preprocess | None = None
    trace: bool = False

    def __post_init__(self) -> None:
        if self.layout is not None and self.weights is None:
            raise UsageError("--layout needs --weights FILE")
        if self.golden is not None and self.weights is not None:
            raise UsageError(
                "--golden and --weights are two sources of the reference", hint="give one of them"
            )

"""The manifest of an artifact: JSON under the metadata key `vit_export`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct, field
from msgspec.structs import force_setattr

from vit_export.artifact.preprocess import Preprocess
from vit_export.artifact.typed_json import SCHEMA_VERSION, Record, decode
from vit_export.artifact.vocabulary import IMAGE, Activation
from vit_export.errors import ArtifactError, ConfigError
from vit_export.variants import NOT_IN_A_CHECKPOINT, ViTConfig

METADATA_KEY = "vit_export"

_RANDOM = re.compile(r"random \(seed (\d+)\)")  # how earlier releases stored a seed

Shape = tuple[int | str, ...]


class TensorSpec(Struct, frozen=True):
    """Name, dtype and shape of a graph input or output.

    Attributes:
        name: e.g. `"pixel_values"`.
        dtype: numpy's name, e.g. `"float32"`.
        shape: One entry per dimension; a string names a dynamic one, e.g. `"batch_size"`.
    """

    name: str
    dtype: str
    shape: Shape

    @property
    def dynamic(self) -> tuple[str, ...]:
        """Names of the dynamic dimensions."""
        return tuple(size for size in self.shape if isinstance(size, str))

    @property
    def fixed_batch(self) -> int | None:
        """The batch size that it fixes; `None` where that is dynamic."""
        first = self.shape[0] if self.shape else 1
        return first if isinstance(first, int) else None

    def fits(self, shape: Sequence[int], *, start: int = 0) -> bool:
        """Whether an array of that shape has this spec's shape, from dimension `start` on."""
        if len(self.shape) != len(shape):
            return False
        sizes = zip(self.shape[start:], shape[start:], strict=True)
        return all(isinstance(want, str) or want == have for want, have in sizes)

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} ({', '.join(map(str, self.shape))})"


class Measurement(Struct, frozen=True, kw_only=True):
    """Distance of one output from its float64 reference at one batch size."""

    output: str
    batch: int
    max_abs: float
    tolerance: float | None  # None where the cosine decides
    cosine: float
    passed: bool


class Stage(Record, frozen=True, kw_only=True, rename={"name": "hop"}):
    """One line of the certificate: what was measured after one stage of the conversion.

    Attributes:
        name: e.g. `"torch -> onnx"` or `"onnx -> simplified"`; stored under the key `hop`.
        provider: Execution provider that ran the artifact.
        samples: Number of golden images.
        batches: Batch sizes that were run.
        baseline_max_abs: Distance of torch's own arithmetic from the float64 reference (logits).
        max_abs: Largest distance of the artifact from the reference (logits, over all batches).
        tolerance: Largest distance allowed (logits).
        cosine: Smallest cosine similarity with the reference over images (logits).
        top1_agreement: Share of golden images with the reference's top-1 class.
        row_max_abs: Largest difference between rows that must be equal.
        passed: `None` where the artifact cannot run on this machine, and where no tolerance
            applies: a model that merges tokens beside the full model.
        reason: `reasons` joined by "; ".
        reasons: Why it did not pass, one sentence each; empty when it did.
        accuracy: What was measured on real images, or `"unmeasured"`; empty in fp32.
        real_images: Number of real images that it was measured on.
        real_agreement: Share of them with the same top-1 class as the fp32 artifact, or the full
            model.
        accuracy_drop: Percentage points of top-1 accuracy that labelled real images lose by it.
        notes: What could not be measured.
        measurements: Every output at every batch size.
    """

    name: str
    provider: str
    samples: int
    batches: tuple[int, ...] = ()
    baseline_max_abs: float | None = None
    max_abs: float | None = None
    tolerance: float | None = None
    cosine: float | None = None
    top1_agreement: float | None = None
    row_max_abs: float | None = None
    passed: bool | None
    reason: str = ""
    accuracy: str = ""
    real_images: int = 0
    real_agreement: float | None = None
    accuracy_drop: float | None = None
    notes: tuple[str, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    reasons: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.reasons:
            force_setattr(self, "reason", "; ".join(self.reasons))
        elif self.reason:  # a file of an earlier release
            force_setattr(self, "reasons", (self.reason,))


class Weights(Record, frozen=True, kw_only=True):
    """Where the weights came from.

    Attributes:
        source: A file's base name, `random (seed 0)`, or the name of a module.
        layout: How the checkpoint names its tensors.
        sha256: Hash of the checkpoint.
        changes: Everything that was not a straight copy.
        reset_head: Whether a zero head replaced the checkpoint's.
        seed: Seed of random weights; `None` for weights of a checkpoint or a module.
        license: As the card of the hub's repository or timm's config.json names it.
    """

    source: str
    layout: str = ""
    sha256: str = ""
    changes: tuple[str, ...] = ()
    reset_head: bool = False
    seed: int | None = None
    license: str = ""

    def __post_init__(self) -> None:
        found = _RANDOM.fullmatch(self.source)
        if self.seed is None and not self.sha256 and found:
            force_setattr(self, "seed", int(found[1]))

    @property
    def random(self) -> bool:
        """Whether the weights are random; those of a checkpoint have a hash."""
        return self.seed is not None and not self.sha256


class Kept(Struct, frozen=True):
    """A layer that stayed in a wider precision than the artifact's, and why."""

    layer: str  # e.g. "blocks.3.mlp.fc2"
    precision: str  # e.g. "fp32"
    reason: str


class Conversion(Record, frozen=True, kw_only=True):
    """How an artifact was converted from fp32.

    Attributes:
        recipe: `"mixed"` or `"all"` (fp16, bf16), `"dynamic"` or `"static"` (int8).
        source_sha256: `graph_sha256` of the fp32 artifact.
        planned: Number of nodes with weights that the recipe converts.
        narrowed: Number of them that are converted in the file: `planned`, less those kept.
        kept: Layers that stayed wider.
        calibration: Where the ranges of activations came from; empty where none were needed.
        notes: What became of the weights: how many overflow, how many become zero.
    """

    recipe: str
    source_sha256: str = ""
    planned: int
    narrowed: int
    kept: tuple[Kept, ...] = ()
    calibration: str = ""
    notes: tuple[str, ...] = ()


class TokenMerging(Struct, frozen=True, kw_only=True):
    """How many tokens a model merges (arXiv 2210.09461); the certificate states what that costs.

    Attributes:
        per_block: Pairs of patch tokens that each block but the last merges.
        tokens: Number of tokens that each block takes.
    """

    per_block: int
    tokens: tuple[int, ...]


class Manifest(Record, frozen=True, kw_only=True):
    """Everything that vit-export writes into an artifact about it.

    Attributes:
        variant: Full variant name, or the class name of a module.
        config: Fields of the `ViTConfig`; empty for another module.
        weights: Where the weights came from.
        precision: One of `PRECISIONS`.
        opset: ONNX operator set version.
        inputs: Graph inputs.
        outputs: Graph outputs.
        preprocess: How images are prepared; `None` where the inputs are not images.
        labels: Class names, one per class; empty where unknown.
        graph_sha256: Hash of the artifact without its metadata.
        blocks: Names of the tensors that leave each encoder block.
        conversion: How it was converted from fp32; `None` for an fp32 artifact.
        toolchain: Versions of the packages that made the file.
        certificate: One entry per stage.
        activation: How logits become scores; `"none"` where the model gives probabilities.
        resize: How the graph resizes images, where it prepares them itself: one of
            `RESIZE_FORMS`; empty where the input is `pixel_values`.
        token_merging: Where tokens are merged, so that the outputs are not those of the full model.
    """

    variant: str
    config: Mapping[str, Any] = field(default_factory=dict)
    weights: Weights
    precision: str = "fp32"
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocess: Preprocess | None = None
    labels: tuple[str, ...] = ()
    graph_sha256: str = ""
    blocks: tuple[str, ...] = ()
    conversion: Conversion | None = None
    toolchain: Mapping[str, str] = field(default_factory=dict)
    certificate: tuple[Stage, ...] = ()
    schema_version: int = SCHEMA_VERSION
    activation: Activation = "softmax"
    resize: str = ""
    token_merging: TokenMerging | None = None

    @property
    def embedded(self) -> bool:
        """Whether the graph prepares images itself: its input is `image`, uint8 (B, H, W, C)."""
        return bool(self.inputs) and self.inputs[0].name == IMAGE

    @property
    def passed(self) -> bool | None:
        """Whether the last stage passed its gate; `None` when it could not be measured."""
        return self.certificate[-1].passed if self.certificate else None

    def vit_config(self, source: str) -> ViTConfig:
        """Return the config of the network; fields that later releases added are ignored."""
        if not self.config:
            raise ArtifactError(
                f"{source}: its manifest has no config, so its architecture is unknown"
            )
        if missing := [name for name in NOT_IN_A_CHECKPOINT if name not in self.config]:
            raise ArtifactError(f"{source}: the config in its manifest lacks {missing[0]!r}")
        plain = ViTConfig(variant=self.variant)
        try:
            return plain.replace({k: v for k, v in self.config.items() if k in vars(plain)})
        except ConfigError as error:
            raise ArtifactError(
                f"{source}: the config in its manifest is damaged: {error}"
            ) from error

    @classmethod
    def from_json(cls, text: str, *, source: str) -> Manifest:
        """Read the value of the metadata key; messages name the file by `source`."""
        what = f"{source}: its metadata key {METADATA_KEY!r}"
        return decode(text, cls, what=what, hint="export the file again")

    def metadata(self) -> dict[str, str]:
        """Return the metadata entries to write: the manifest, and plain keys for other tools.

        `task`, `imgsz`, `names` and `batch` are spelt as Ultralytics' readers expect them.
        """
        plain = {"task": "classify"}
        if self.preprocess is not None:
            plain["imgsz"] = str(list(self.preprocess.size))
        if self.labels:
            plain["names"] = str(dict(enumerate(self.labels)))
        if self.inputs:
            plain["batch"] = str(self.inputs[0].fixed_batch or 1)
        return {**plain, METADATA_KEY: self.to_json()}

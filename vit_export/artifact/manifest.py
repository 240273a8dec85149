"""What an artifact says about itself: JSON under the metadata key `vit_export`.

A runtime needs nothing but this to prepare an image, name a class and know how far the
artifact was measured from its torch model. Standard library only.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vit_export.errors import ArtifactError
from vit_export.variants import ViTConfig

SCHEMA_VERSION = 1
METADATA_KEY = "vit_export"
FEATURES = "features"  # name of the tensor that the head reads, in every graph of ours

Shape = tuple[int | str, ...]


def fits(expected: Shape, shape: Sequence[int]) -> bool:
    """Whether a shape fits one with dynamic dimensions."""
    return len(expected) == len(shape) and all(
        isinstance(want, str) or want == have for want, have in zip(expected, shape, strict=True)
    )


@dataclass(frozen=True)
class TensorSpec:
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

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} ({', '.join(map(str, self.shape))})"


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How an image becomes `pixel_values`, as timm's evaluation transform does it.

    Resize the short side to `floor(size / crop_pct)`, cut `size` out of the centre, scale to
    [0, 1], subtract `mean`, divide by `std`.

    Attributes:
        size: Height and width of the model's input in pixels.
        crop_pct: Crop size / resized short side.
        interpolation: `"bicubic"`, `"bilinear"`, `"nearest"` or `"lanczos"`, as Pillow does it.
        mean: Per channel, of pixels scaled to [0, 1].
        std: Per channel.
        color: `"RGB"`, `"L"` (grey), or `""` for another number of channels (arrays only).
        crop_mode: `"center"`, or `"squash"` to resize both sides to `floor(size / crop_pct)`,
            whatever the aspect, before the crop.
    """

    size: tuple[int, int]
    crop_pct: float = 0.9
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    color: str = "RGB"
    crop_mode: str = "center"

    @classmethod
    def of(cls, config: ViTConfig) -> Preprocess:
        """The preparation that a config names."""
        return cls(
            size=config.image_hw,
            crop_pct=config.crop_pct,
            interpolation=config.interpolation,
            mean=config.mean,
            std=config.std,
            color={1: "L", 3: "RGB"}.get(config.in_chans, ""),
        )


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Distance of one output from the float64 oracle at one batch size."""

    output: str
    batch: int
    max_abs: float
    tolerance: float | None  # None where cosine decides
    cosine: float
    passed: bool


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One line of the certificate: what was measured after one stage of the conversion.

    Attributes:
        name: e.g. `"torch -> onnx"` or `"onnx -> simplified"`.
        provider: Execution provider that ran the artifact.
        samples: Number of golden images.
        batches: Batch sizes that were run.
        baseline_max_abs: Distance of torch's own arithmetic from the oracle (logits).
        max_abs: Largest distance of the artifact from the oracle (logits, over all batches).
        tolerance: Largest distance allowed (logits).
        cosine: Smallest cosine similarity with the oracle over images (logits).
        top1_agreement: Share of golden images with the oracle's top-1 class.
        row_max_abs: Largest difference between rows that must be equal.
        passed: `None` only where the artifact cannot run on this machine.
        reason: Why it did not pass; empty when it did.
        accuracy: `"unmeasured"` without real images, otherwise what was found on them; empty
            in fp32, whose distance says it all.
        real_images: Number of real images that it was measured on.
        real_agreement: Share of them with the same top-1 class as the fp32 artifact.
        accuracy_drop: Percentage points of top-1 accuracy lost against the fp32 artifact, where
            the images have labels.
        notes: What could not be measured.
        measurements: Every output at every batch size.
    """

    name: str
    provider: str
    samples: int
    batches: tuple[int, ...]
    baseline_max_abs: float | None
    max_abs: float | None
    tolerance: float | None
    cosine: float | None
    top1_agreement: float | None
    row_max_abs: float | None
    passed: bool | None
    reason: str = ""
    accuracy: str = ""
    real_images: int = 0
    real_agreement: float | None = None
    accuracy_drop: float | None = None
    notes: tuple[str, ...] = ()
    measurements: tuple[Measurement, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Where the weights came from: a file's base name or `random (seed 0)`."""

    source: str
    layout: str = ""
    sha256: str = ""
    changes: tuple[str, ...] = ()  # everything that was not a straight copy
    reset_head: bool = False  # whether a zero head took the place of the file's

    @property
    def random(self) -> bool:
        """Whether nobody trained them; a checkpoint has a hash, whatever it is called."""
        return not self.sha256 and self.source.startswith("random (seed ")


@dataclass(frozen=True)
class Kept:
    """A layer that stayed in a wider precision than the artifact's, and why."""

    layer: str  # e.g. "blocks.3.mlp.fc2"
    precision: str  # e.g. "fp32"
    reason: str


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """How an artifact was made narrower than fp32.

    Attributes:
        recipe: `"mixed"` or `"all"` (fp16, bf16), `"dynamic"` or `"static"` (int8).
        source_sha256: `graph_sha256` of the fp32 artifact.
        planned: Number of nodes with weights that the recipe narrows.
        narrowed: Number of them that are narrow in the file: `planned`, less those kept.
        kept: Layers that stayed wider.
        calibration: Where the ranges of activations came from; empty where none were needed.
        notes: What became of the weights: how many overflow, how many flush to zero.
    """

    recipe: str
    source_sha256: str = ""
    planned: int
    narrowed: int
    kept: tuple[Kept, ...] = ()
    calibration: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything an artifact says about itself; see the module's docstring.

    Attributes:
        variant: Full variant name, or the module's own name.
        config: Fields of the `ViTConfig`; empty for a module that is not ours.
        blocks: Names of the tensors that leave each encoder block.
        conversion: How it was made from an fp32 artifact; `None` where it is one.
        graph_sha256: Hash of the artifact without its metadata.
        certificate: One entry per stage.
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

    @property
    def passed(self) -> bool | None:
        """Whether the last stage passed its gate; `None` when it could not be measured."""
        return self.certificate[-1].passed if self.certificate else None

    def replace(self, **changes: Any) -> Manifest:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        values = dataclasses.asdict(self)
        values["certificate"] = [stage_to_dict(stage) for stage in self.certificate]
        return values

    def to_json(self) -> str:
        """Compact JSON with a fixed order of keys."""
        return json.dumps(self.to_dict(), separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, *, source: str) -> Manifest:
        """Read a manifest.

        Args:
            text: What stands under the metadata key.
            source: Name of the file it came from, for messages.

        Raises:
            ArtifactError: Not a manifest, or one of a newer schema.
        """
        try:
            data = json.loads(text)
            version = data["schema_version"]
            if version > SCHEMA_VERSION:
                raise ArtifactError(
                    f"{source}: its manifest has schema version {version}, this vit-export reads "
                    f"up to {SCHEMA_VERSION}; upgrade with: pip install -U vit-export"
                )
            return cls._from_dict(data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(
                f"{source}: its metadata key {METADATA_KEY!r} is damaged ({error!r}); "
                "export the file again"
            ) from error

    @classmethod
    def _from_dict(cls, data: Mapping[str, Any]) -> Manifest:
        known = {entry.name for entry in dataclasses.fields(cls)}
        values = {name: value for name, value in data.items() if name in known}
        values["weights"] = Weights(**_tuples(data["weights"]))
        for name in ("inputs", "outputs"):
            values[name] = tuple(TensorSpec(**_tuples(spec)) for spec in data[name])
        if data.get("preprocess") is not None:
            values["preprocess"] = _preprocess(data["preprocess"])
        if data.get("conversion") is not None:
            values["conversion"] = _conversion(data["conversion"])
        for name in ("labels", "blocks"):
            values[name] = _tuple_of(str, name, list(data.get(name, ())))
        values["certificate"] = tuple(_stage(stage) for stage in data.get("certificate", ()))
        return cls(**values)

    def metadata(self) -> dict[str, str]:
        """The metadata entries to write: ours, and the plain keys that other tools read.

        `task`, `imgsz`, `names` and `batch` are spelt as Ultralytics' readers expect them.
        """
        plain = {"task": "classify"}
        if self.preprocess is not None:
            plain["imgsz"] = str(list(self.preprocess.size))
        if self.labels:
            plain["names"] = str(dict(enumerate(self.labels)))
        if self.inputs:
            batch = self.inputs[0].shape[0]
            plain["batch"] = str(batch if isinstance(batch, int) else 1)
        return {**plain, METADATA_KEY: self.to_json()}


def _tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(v) if isinstance(v, Sequence) and not isinstance(v, str) else v
            for key, v in data.items()}  # fmt: skip


def _preprocess(data: Mapping[str, Any]) -> Preprocess:
    """Raises TypeError or ValueError where no image could be prepared by it."""
    found = Preprocess(**_tuples(data))
    if len(_tuple_of(int, "size", found.size)) != 2 or min(found.size) < 1:
        raise ValueError(f"size is {found.size}, not a height and a width")
    numbers = (*_tuple_of((int, float), "mean", found.mean),
               *_tuple_of((int, float), "std", found.std),
               *_tuple_of((int, float), "crop_pct", (found.crop_pct,)))  # fmt: skip
    if len(found.mean) != len(found.std) or not all(map(math.isfinite, numbers)):
        raise ValueError(f"mean {found.mean}, std {found.std}, crop_pct {found.crop_pct}")
    _tuple_of(str, "strings", (found.interpolation, found.color, found.crop_mode))
    return found


def _tuple_of(kind: type | tuple[type, ...], name: str, values: Any) -> tuple[Any, ...]:
    """The values as they are; TypeError unless they are a sequence of that kind."""
    if not isinstance(values, list | tuple):
        raise TypeError(f"{name} is {values!r}, not a list")
    if not all(isinstance(value, kind) and not isinstance(value, bool) for value in values):
        raise TypeError(f"{name} is {values!r}: a value of the wrong type")
    return tuple(values)


def _conversion(data: Mapping[str, Any]) -> Conversion:
    values = _tuples(data)
    values["kept"] = tuple(Kept(**row) for row in data.get("kept", ()))
    return Conversion(**values)


def stage_to_dict(stage: Stage) -> dict[str, Any]:
    """A stage as JSON holds it: its name stands under the key `hop`."""
    values = dataclasses.asdict(stage)
    return {"hop": values.pop("name"), **values}


def _stage(data: Mapping[str, Any]) -> Stage:
    values = _tuples(data)
    values["name"] = values.pop("hop")
    values["measurements"] = tuple(Measurement(**row) for row in data.get("measurements", ()))
    return Stage(**values)

"""Settings of an engine build, and which of them exclude each other."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_export.artifact.engine_sidecar import BatchRange
from vit_export.engine.profiles import check_batch_range, range_text
from vit_export.errors import UsageError, check_known
from vit_export.runtime.tensorrt.backend import MODULES

PRECISIONS = ("fp16", "bf16", "fp32", "int8")
HARDWARE_COMPATIBILITY = {  # our name -> TensorRT's, trtexec's
    "none": ("NONE", "none"),
    "ampere-plus": ("AMPERE_PLUS", "ampere+"),
    "same-compute-capability": ("SAME_COMPUTE_CAPABILITY", "sameComputeCapability"),
}
SWITCHES = {  # fields of EngineSettings -> flag of the builder, option of trtexec
    "version_compatible": ("VERSION_COMPATIBLE", "--versionCompatible"),
    "weight_streaming": ("WEIGHT_STREAMING", "--allowWeightStreaming"),
    "refit": ("REFIT", "--refit"),
    "strip": ("STRIP_PLAN", "--stripWeights"),
}
IGNORED_BY_RTX = {  # settings that TensorRT-RTX accepts and ignores
    "timing_cache": "it times nothing while it builds",
    "builder_level": "every level gives the same plan",
    "version_compatible": "it has no lean runtime",
    "hardware_compatibility": "it compiles for several GPUs instead: --compute-capability once for "
    "each",
}
MAX_WORKSPACE_MIB = 1 << 24  # 16 TiB, more than any GPU has
MACHINE_FIELDS = ("compute_capabilities", "timing_cache")  # which a rebuild elsewhere leaves out


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How to build an engine.

    Attributes:
        backend: `"tensorrt"` or `"tensorrt-rtx"`.
        precision: `"fp16"`, `"bf16"`, `"fp32"` or `"int8"`.
        batches: Batch sizes (min, opt, max), one entry per optimization profile; 1:8:32 by
            default.
        compute_capabilities: GPUs to compile for, e.g. `("8.9",)`; by default the one here.
        workspace_mib: Scratch memory limit of a layer, MiB; TensorRT's own default otherwise.
        timing_cache: File with timings of earlier builds.
        builder_level: How long to search for fast kernels, 0 to 5; TensorRT's default is 3.
        version_compatible: Let later versions run the engine, with a runtime inside it.
        hardware_compatibility: `"none"`, `"ampere-plus"` or `"same-compute-capability"`.
        weight_streaming: Let weights stay in host memory while the engine runs.
        refit: Let weights be replaced later.
        strip: Store no weights in the engine; they are read from the .onnx file at load.

    Raises:
        UsageError: For an unknown value, or one that the backend ignores.
    """

    backend: str = "tensorrt"
    precision: str = "fp16"
    batches: tuple[BatchRange, ...] = ()
    compute_capabilities: tuple[str, ...] = ()
    workspace_mib: int | None = None
    timing_cache: Path | None = None
    builder_level: int | None = None
    version_compatible: bool = False
    hardware_compatibility: str = "none"
    weight_streaming: bool = False
    refit: bool = False
    strip: bool = False

    def __post_init__(self) -> None:
        for value, known, what in (
            (self.backend, MODULES, "backend"),
            (self.precision, PRECISIONS, "precision"),
            (self.hardware_compatibility, HARDWARE_COMPATIBILITY, "hardware compatibility"),
        ):
            check_known(what, value, known)
        if self.builder_level is not None and not 0 <= self.builder_level <= 5:
            raise UsageError(f"--builder-level {self.builder_level}: must be 0 to 5")
        if self.workspace_mib is not None and not 1 <= self.workspace_mib <= MAX_WORKSPACE_MIB:
            raise UsageError(
                f"--workspace-mib {self.workspace_mib}: must be at least 1 and at most "
                f"{MAX_WORKSPACE_MIB}"
            )
        for batch_range in self.batches:
            check_batch_range(batch_range)
        for name in self.changed() if self.backend == "tensorrt-rtx" else ():
            if reason := IGNORED_BY_RTX.get(name):
                option = name.replace("_", "-")
                raise UsageError(f"--{option}: TensorRT-RTX ignores it: {reason}")

    def changed(self) -> dict[str, Any]:
        """Return the settings that differ from the defaults as JSON values, for the sidecar."""
        values = {
            entry.name: getattr(self, entry.name)
            for entry in dataclasses.fields(self)
            if getattr(self, entry.name) != entry.default
        }
        values |= {"backend": self.backend, "precision": self.precision}
        if self.timing_cache is not None:
            values["timing_cache"] = self.timing_cache.name
        if self.batches:
            values["batches"] = [range_text(batch_range) for batch_range in self.batches]
        return values

    def arguments(self) -> tuple[str, ...]:
        """Return command line arguments for the same build on the GPU of another machine."""
        words = ["--backend", self.backend, "--precision", self.precision]
        for name, value in self.changed().items():
            if name in ("backend", "precision", *MACHINE_FIELDS):
                continue
            option = "--batch" if name == "batches" else "--" + name.replace("_", "-")
            if value is True:
                words.append(option)
            else:
                values = value if isinstance(value, list) else [value]
                words += [word for one in values for word in (option, str(one))]
        return tuple(words)

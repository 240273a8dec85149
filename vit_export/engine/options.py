"""What an engine may be asked to be, and what cannot be asked together."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_export.artifact.engine_sidecar import BatchRange
from vit_export.engine.profiles import check_batch_range, show
from vit_export.errors import UsageError, nearest
from vit_export.runtime.tensorrt.backend import MODULES

PRECISIONS = ("fp16", "bf16", "fp32", "int8")
HARDWARE_COMPATIBILITY = {  # our word -> TensorRT's, -> trtexec's
    "none": ("NONE", "none"),
    "ampere-plus": ("AMPERE_PLUS", "ampere+"),
    "same-compute-capability": ("SAME_COMPUTE_CAPABILITY", "sameComputeCapability"),
}
BUILDER_LEVELS = range(6)
MOST_WORKSPACE_MIB = 1 << 24  # 16 TiB, more than any GPU has


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What is asked for.

    Attributes:
        backend: `"tensorrt"` or `"tensorrt-rtx"`.
        precision: `"fp16"`, `"bf16"`, `"fp32"` or `"int8"`.
        batches: Batch sizes (min, opt, max), one entry per optimization profile.
        compute_capabilities: GPUs to compile for, e.g. `("8.9",)`; by default the one here.
        workspace_mib: Most scratch memory of a layer, MiB; TensorRT's own default otherwise.
        timing_cache: File with timings of earlier builds.
        builder_level: How long to look for fast kernels, 0 to 5; TensorRT's default is 3.
        version_compatible: Whether later versions may run the engine, by a runtime inside it.
        hardware_compatibility: `"none"`, `"ampere-plus"` or `"same-compute-capability"`.
        weight_streaming: Whether weights may stay in host memory while the engine runs.
        refit: Whether weights can be replaced later.
        strip: Whether the plan goes without its weights, which are read from the .onnx at load.
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
            (self.backend, tuple(MODULES), "backend"),
            (self.precision, PRECISIONS, "precision"),
            (self.hardware_compatibility, tuple(HARDWARE_COMPATIBILITY), "hardware compatibility"),
        ):
            if value not in known:
                raise UsageError(
                    f"unknown {what} {value!r}{nearest(value, known)} (known: {', '.join(known)})"
                )
        if self.builder_level is not None and self.builder_level not in BUILDER_LEVELS:
            raise UsageError(f"--builder-level {self.builder_level}: must be 0 to 5")
        if self.workspace_mib is not None and not 1 <= self.workspace_mib <= MOST_WORKSPACE_MIB:
            raise UsageError(
                f"--workspace-mib {self.workspace_mib}: must be at least 1 and at most "
                f"{MOST_WORKSPACE_MIB}"
            )
        for ends in self.batches:
            check_batch_range(ends)
        if self.backend == "tensorrt-rtx":
            self._check_for_rtx()

    def _check_for_rtx(self) -> None:
        """TensorRT-RTX takes these without a word, or with a warning, and does nothing."""
        ignored = {
            "--timing-cache": (self.timing_cache is not None, "it times nothing while it builds"),
            "--builder-level": (self.builder_level is not None, "every level gives the same plan"),
            "--version-compatible": (self.version_compatible, "it has no lean runtime"),
            "--hardware-compatibility": (
                self.hardware_compatibility != "none",
                "give --compute-capability once for each kind of GPU instead",
            ),
        }
        for option, (asked, reason) in ignored.items():
            if asked:
                raise UsageError(f"TensorRT-RTX knows no {option}: {reason}")

    def asked(self) -> dict[str, Any]:
        """What differs from the defaults, as plain values."""
        found = {
            entry.name: getattr(self, entry.name)
            for entry in dataclasses.fields(self)
            if getattr(self, entry.name) != entry.default
        }
        found |= {"backend": self.backend, "precision": self.precision}
        if self.timing_cache is not None:
            found["timing_cache"] = self.timing_cache.name
        if self.batches:
            found["batches"] = [show(ends) for ends in self.batches]
        return found

    def arguments(self) -> tuple[str, ...]:
        """Words of the command line that ask for the same on the GPU that is then there.

        A timing cache is left out: it is a file of the machine where the engine was built.
        """
        words = ["--backend", self.backend, "--precision", self.precision]
        for ends in self.batches:
            words += ["--batch", show(ends)]
        if self.workspace_mib is not None:
            words += ["--workspace-mib", str(self.workspace_mib)]
        if self.builder_level is not None:
            words += ["--builder-level", str(self.builder_level)]
        if self.hardware_compatibility != "none":
            words += ["--hardware-compatibility", self.hardware_compatibility]
        for flag in ("version_compatible", "weight_streaming", "refit", "strip"):
            if getattr(self, flag):
                words.append("--" + flag.replace("_", "-"))
        return tuple(words)

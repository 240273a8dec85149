"""Settings of an engine build, the optimization profiles and the GPUs that it is for."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.version import Version

from vit_export.artifact.engine_sidecar import BatchRange, Gpu, Profile, Range
from vit_export.artifact.manifest import TensorSpec
from vit_export.errors import EngineError, UsageError, check_known
from vit_export.runtime.checks import with_batch
from vit_export.runtime.tensorrt.backend import MODULES, Backend

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
MAX_DIMENSION = 2**31 - 1  # what TensorRT's kernels can count
OLDEST_BF16 = Version("8.0")  # compute capability
DEFAULT_BATCH = BatchRange(1, 8, 32)


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How to build an engine.

    Attributes:
        backend: `"tensorrt"` or `"tensorrt-rtx"`.
        precision: `"fp16"`, `"bf16"`, `"fp32"` or `"int8"`.
        batches: Batch sizes (min, opt, max), one entry per optimization profile; 1:8:32 by
            default.
        device: Number of the GPU that builds and measures, as CUDA counts them; by default the one
            that the calling thread uses.
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
    device: int | None = None
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
        for name, choice, known in (
            ("backend", self.backend, MODULES),
            ("precision", self.precision, PRECISIONS),
            ("hardware compatibility", self.hardware_compatibility, HARDWARE_COMPATIBILITY),
        ):
            check_known(name, choice, known)
        for name, number, least, most in (
            ("builder-level", self.builder_level, 0, 5),
            ("workspace-mib", self.workspace_mib, 1, MAX_WORKSPACE_MIB),
        ):
            if number is not None and not least <= number <= most:
                raise UsageError(f"--{name} {number}: must be {least} to {most}")
        for sizes in self.batches:
            if not 1 <= sizes.min <= sizes.opt <= sizes.max <= MAX_DIMENSION:
                raise UsageError(
                    f"--batch {range_text(sizes)}: expected 1 <= MIN <= OPT <= MAX <= "
                    f"{MAX_DIMENSION}, e.g. 1:8:32"
                )
        targets: Any = self.compute_capabilities
        if not isinstance(targets, list | tuple) or not all(isinstance(t, str) for t in targets):
            raise UsageError(
                f"compute_capabilities={targets!r}: expected a tuple of strings",
                hint='e.g. compute_capabilities=("8.9",)',
            )
        for target in targets:
            if not re.fullmatch(r"\d{1,2}\.\d", target):
                digits = re.search(r"(\d{1,2})\.?(\d)", target)
                spelled = ".".join(digits.groups()) if digits else "8.9"
                raise UsageError(
                    f"--compute-capability {target}: expected one compute capability, as X.Y",
                    hint=f"write {spelled}; give the option once for each GPU",
                )
        for name, reason in IGNORED_BY_RTX.items():
            if self.backend == "tensorrt-rtx" and name in self.changed():
                raise UsageError(f"--{name.replace('_', '-')}: TensorRT-RTX ignores it: {reason}")

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
            values["batches"] = [range_text(sizes) for sizes in self.batches]
        return values

    def arguments(self) -> tuple[str, ...]:
        """Return command line arguments for the same build on another GPU or machine."""
        machine = dataclasses.replace(self, device=None, compute_capabilities=(), timing_cache=None)
        words: list[str] = []
        for name, value in machine.changed().items():
            option = "--batch" if name == "batches" else "--" + name.replace("_", "-")
            if value is True:
                words.append(option)
            else:
                for one in value if isinstance(value, list) else [value]:
                    words += [option, str(one)]
        return tuple(words)


def range_text(sizes: BatchRange) -> str:
    """Return a range as `parse_range` reads it, e.g. `"1:8:32"`."""
    return ":".join(map(str, sizes))


def parse_range(text: str) -> BatchRange:
    """Read `MIN:OPT:MAX`, or one batch size for all three."""
    match = re.fullmatch(r"\s*(\d{1,10})\s*(?::\s*(\d{1,10})\s*:\s*(\d{1,10})\s*)?", text)
    if match is None:
        raise UsageError(f"--batch {text}: expected MIN:OPT:MAX, e.g. 1:8:32, or one batch size")
    return BatchRange(*(int(size or match[1]) for size in match.groups()))


def profiles_of(inputs: Sequence[TensorSpec], batches: Sequence[BatchRange]) -> tuple[Profile, ...]:
    """Return one profile per range of batch sizes, none where all shapes of the inputs are fixed.

    A profile holds the shapes that an engine accepts, and the one that it is fastest at.
    """
    dynamic = [spec for spec in inputs if spec.dynamic]
    if not dynamic:
        fixed = inputs[0].fixed_batch
        if any(sizes != (fixed, fixed, fixed) for sizes in batches):
            raise UsageError(
                f"--batch {range_text(batches[0])}: the graph has a fixed batch size ({inputs[0]})",
                hint="export it with --batch dynamic",
            )
        return ()
    for spec in dynamic:
        if names := [name for name in spec.shape[1:] if isinstance(name, str)]:
            raise UsageError(
                f"the graph has a dynamic {' and '.join(names)} ({spec}), which TensorRT cannot "
                "build (it has no antialiased Resize)",
                hint="export one file per size: vit-export onnx --img-size",
            )
    return tuple(
        {spec.name: Range(*(with_batch(spec.shape, size) for size in sizes)) for spec in dynamic}
        for sizes in (tuple(batches) or (DEFAULT_BATCH,))
    )


def targets_of(backend: Backend, settings: EngineSettings, gpu: Gpu | None) -> tuple[str, ...]:
    """Return the compute capabilities to compile for: those of the settings, or the GPU's."""
    here = () if gpu is None else (gpu.compute_capability,)
    known = tuple(rtx_capabilities(backend)) if backend.is_rtx else here
    targets = tuple(dict.fromkeys(settings.compute_capabilities)) or here
    if unknown := [target for target in targets if target not in known]:
        if backend.is_rtx:
            only = f"TensorRT-RTX {backend.version} compiles for {', '.join(known)} only"
            hint = "use --backend tensorrt for other GPUs"
        else:
            only = f"TensorRT builds for this machine's GPU ({', '.join(here) or 'none'})"
            hint = (
                "build on a machine with such a GPU, or use --hardware-compatibility ampere-plus, "
                "or --backend tensorrt-rtx, which builds for other GPUs"
            )
        raise UsageError(f"--compute-capability {unknown[0]}: {only}", hint=hint)
    if gpu is None and not backend.is_rtx:
        raise EngineError(
            f"{backend.name} {backend.version} builds on the GPU that runs the engine, and there "
            "is none here (or no driver)",
            hint="--backend tensorrt-rtx builds without a GPU",
        )
    if not targets:
        raise UsageError(
            "there is no GPU here, so the GPU that will run the engine is not known",
            hint=f"name it: --compute-capability 8.9 (known: {', '.join(known)}; several may be "
            "given)",
        )
    if gpu is None and (settings.refit or settings.strip):
        raise EngineError(
            f"--{'strip' if settings.strip else 'refit'}: refittable and stripped engines are "
            "compiled on the GPU, and there is none here"
        )
    too_old = [target for target in targets if Version(target) < OLDEST_BF16]
    if settings.precision == "bf16" and too_old:
        raise UsageError(
            f"--precision bf16: compute capability {too_old[0]} has no bfloat16, which needs "
            f"{OLDEST_BF16} or newer",
            hint="use --precision fp16",
        )
    return targets


def rtx_capabilities(backend: Backend) -> dict[str, Any]:
    """Return what TensorRT-RTX compiles for, e.g. `{"8.9": ComputeCapability.SM89}`."""
    members = backend.trt.ComputeCapability.__members__
    matches = {name: re.fullmatch(r"SM(\d+)(\d)", name) for name in members}
    return {f"{m[1]}.{m[2]}": members[name] for name, m in matches.items() if m is not None}

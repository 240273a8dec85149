"""Options of NVIDIA's execution providers, and how ONNX Runtime spells them.

The providers of onnxruntime-gpu 1.31 accept these names and refuse unknown ones (checked by
`tests/gpu_wheel`); those of TensorRT-RTX are from the header in the plugin's wheel.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.errors import InputError, OutputError, ProviderError, UsageError

Profile = tuple[int, int, int]
PathLike = str | os.PathLike[str]

TF32_VARIABLE = "NVIDIA_TF32_OVERRIDE"  # "0": no NVIDIA library uses TF32
MAPPED_FILES = Path("/proc/self/maps")  # on Linux, the libraries that this process has loaded


@dataclass(frozen=True, kw_only=True)
class _Options:
    device_id: int = 0

    def __post_init__(self) -> None:
        for name, least in (("device_id", 0), ("memory_limit_bytes", 1)):
            if (value := getattr(self, name, None)) is not None and value < least:
                raise UsageError(f"{name}={value}: expected {least} or more")

    def session_entries(self) -> dict[str, str]:  # of the session's configuration
        return {}


@dataclass(frozen=True, kw_only=True)
class CudaOptions(_Options):
    """Options of `provider="cuda"`.

    Attributes:
        device_id: Number of the GPU, as CUDA counts them.
        tf32: Compute float32 products with 10 of 23 bits of the mantissa, which is faster. It is
            ONNX Runtime's own default.
        cuda_graph: Record the kernels of a run once per batch size and replay them. `run` then
            copies inputs and outputs to and from fixed buffers; every node must have a CUDA kernel.
        memory_limit_bytes: Limit of the arena in which ONNX Runtime allocates tensors.
    """

    provider: ClassVar[str] = "cuda"
    tf32: bool = False
    cuda_graph: bool = False
    memory_limit_bytes: int | None = None

    def provider_options(self, file: OnnxFile, version: str) -> dict[str, str]:
        options = {"device_id": str(self.device_id), "use_tf32": str(int(self.tf32))}
        if self.cuda_graph:
            options["enable_cuda_graph"] = "1"
        if self.memory_limit_bytes is not None:
            options["gpu_mem_limit"] = str(self.memory_limit_bytes)
        return options


@dataclass(frozen=True, kw_only=True)
class EngineOptions(_Options):
    """What the options of both TensorRT providers have in common."""

    profile: Profile | None = None
    ep_context: PathLike | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.profile is not None and not (
            len(self.profile) == 3 and 1 <= self.profile[0] <= self.profile[1] <= self.profile[2]
        ):
            raise UsageError(
                f"profile={self.profile}: expected the batch sizes (min, opt, max), rising from 1"
            )
        if self.ep_context is not None and Path(self.ep_context).suffix != ".onnx":
            raise UsageError(f"ep_context={str(self.ep_context)!r}: expected a name in .onnx")

    def check_context_file(self, file: OnnxFile, path: Path) -> None:
        """Check that the context file can be written, before an engine is built for minutes."""
        if path.exists():
            raise OutputError(f"ep_context: {path} exists", hint="remove it, or give another name")
        if not path.parent.is_dir():
            raise OutputError(f"ep_context: the folder {path.parent} does not exist")
        if self.profile is None and any(spec.dynamic for spec in file.inputs):
            raise UsageError(
                f"ep_context: {file.path.name} takes any batch size, but an engine is built for "
                "a range of them",
                hint="give profile=(min, opt, max) too",
            )

    def profile_options(self, prefix: str, file: OnnxFile) -> dict[str, str]:
        """Return e.g. `{"trt_profile_min_shapes": "pixel_values:1x3x224x224", ...}`."""
        if self.profile is None:
            return {}
        for spec in file.inputs:
            if spec.dynamic != spec.shape[:1]:
                raise UsageError(
                    f"profile={self.profile}: a profile gives batch sizes, so it needs an input "
                    f"whose batch alone is dynamic, unlike {spec}"
                )
        return {
            f"{prefix}_profile_{which}_shapes": ",".join(
                f"{spec.name}:{'x'.join(map(str, (size, *spec.shape[1:])))}" for spec in file.inputs
            )
            for which, size in zip(("min", "opt", "max"), self.profile, strict=True)
        }


@dataclass(frozen=True, kw_only=True)
class TensorrtOptions(EngineOptions):
    """Options of `provider="tensorrt"`, TensorRT inside ONNX Runtime.

    There is no option for the precision: the provider builds a strongly typed network, so an FP16
    file gives an FP16 engine. There is none against TF32 either: a load sets the environment
    variable NVIDIA_TF32_OVERRIDE to 0 in this process, unless it is set already.

    Attributes:
        device_id: Number of the GPU, as CUDA counts them.
        profile: Batch sizes (min, opt, max) of the engine, which is built at load. Without it an
            engine is built at the first run, and again when the batch size leaves its range.
        ep_context: File to write: an `.onnx` that contains the engine, and the manifest. The same
            provider loads it without a build.
        engine_cache: Folder for engines and kernel timings. Each model has a folder of its own in
            it, named after its content, ONNX Runtime's version and TF32: ONNX Runtime alone
            would find an engine by the model's file name, even one of other weights.
    """

    provider: ClassVar[str] = "tensorrt"
    engine_cache: PathLike | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.engine_cache is not None and self.ep_context is not None:
            raise UsageError(
                "engine_cache and ep_context: expected only one; a context file contains its engine"
            )

    def provider_options(self, file: OnnxFile, version: str) -> dict[str, str]:
        options = {"device_id": str(self.device_id), **self.profile_options("trt", file)}
        if self.engine_cache is not None:
            name = f"{file.path.stem}-{file.graph_sha256()[:16]}-ort{version}"
            if os.environ.get(TF32_VARIABLE) != "0":
                name += "-tf32"
            folder = _make_folder("engine_cache", Path(self.engine_cache) / name)
            options |= {
                "trt_engine_cache_enable": "True",
                "trt_engine_cache_path": folder,
                "trt_timing_cache_enable": "True",
                "trt_timing_cache_path": folder,
            }
        if self.ep_context is not None:
            options["trt_dump_ep_context_model"] = "True"
            options["trt_ep_context_file_path"] = str(Path(self.ep_context).absolute())
            options["trt_ep_context_embed_mode"] = "1"
        return options


@dataclass(frozen=True, kw_only=True)
class TensorrtRtxOptions(EngineOptions):
    """Options of `provider="tensorrt-rtx"`, the plugin for GeForce RTX and RTX PRO cards.

    Attributes:
        device_id: Number of the GPU among those that the plugin supports, in its order.
        profile: Batch sizes (min, opt, max); without it the plugin infers the ranges.
        ep_context: File to write, as for `TensorrtOptions`.
        runtime_cache: Folder for kernels that the plugin compiles at first use.
    """

    provider: ClassVar[str] = "tensorrt-rtx"
    runtime_cache: PathLike | None = None

    def provider_options(self, file: OnnxFile, version: str) -> dict[str, str]:
        options = self.profile_options("nv", file)
        if self.runtime_cache is not None:
            folder = _make_folder("runtime_cache", Path(self.runtime_cache))
            options["nv_runtime_cache_path"] = folder
        return options

    def session_entries(self) -> dict[str, str]:
        if self.ep_context is None:
            return {}
        return {
            "ep.context_enable": "1",
            "ep.context_file_path": str(Path(self.ep_context).absolute()),
            "ep.context_embed_mode": "1",
        }


ProviderOptions = CudaOptions | TensorrtOptions | TensorrtRtxOptions
DEFAULTS: dict[str, ProviderOptions] = {
    kind.provider: kind() for kind in (CudaOptions, TensorrtOptions, TensorrtRtxOptions)
}


def _make_folder(option: str, folder: Path) -> str:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{option}: the folder {folder} cannot be created: {error.strerror or error}"
        ) from error
    return str(folder)


def resolve(provider: str, options: ProviderOptions | None) -> tuple[str, ProviderOptions | None]:
    """Return the provider that options belong to, or the default options of a provider."""
    if options is None:
        return provider, DEFAULTS.get(provider)  # "cpu" and "auto" have none
    if provider not in ("auto", options.provider):
        raise UsageError(
            f"{type(options).__name__} is for provider {options.provider!r}, but the provider is "
            f"{provider!r}"
        )
    return options.provider, options


def check_profile(profile: Profile | None, shapes: Mapping[str, Sequence[int]]) -> None:
    """Check that a batch is in the engine's profile; the provider would build another engine."""
    for name, (size, *_) in shapes.items():
        if profile is not None and not profile[0] <= size <= profile[2]:
            raise InputError(
                f"input {name!r} holds {size} images; the engine is built for {profile[0]} to "
                f"{profile[2]} (profile={profile})"
            )


def without_context_file(options: ProviderOptions | None) -> ProviderOptions | None:
    """Return the options for another session of the same model, which writes no context file."""
    return replace(options, ep_context=None) if isinstance(options, EngineOptions) else options


def disable_tf32(provider: str, precision: str) -> None:
    """Set NVIDIA_TF32_OVERRIDE=0 in this process for a provider that has no option against TF32.

    ONNX Runtime's TensorRT providers build with TF32 otherwise (microsoft/onnxruntime, issue
    26029). TensorRT-RTX 1.7 reads the variable at every build. TensorRT reads it when CUDA is
    first used, so afterwards it is too late: an error for fp32; TF32 matters little to narrower
    precisions. With 1 the user wants TF32, and the gate measures it.
    """
    if provider not in ("tensorrt", "tensorrt-rtx") or TF32_VARIABLE in os.environ:
        return
    if not cuda_is_loaded():
        os.environ[TF32_VARIABLE] = "0"
    elif precision == "fp32":
        raise ProviderError(
            f"provider {provider!r} would compute float32 products in TF32 (10 of 23 bits): "
            f"{TF32_VARIABLE}=0 must be set before CUDA is used, and this process has used it",
            hint=f"start the process with {TF32_VARIABLE}=0, or with {TF32_VARIABLE}=1 to allow "
            "TF32",
        )


def cuda_is_loaded() -> bool:
    """Whether this process has loaded NVIDIA's driver library; False where that is unknown."""
    return MAPPED_FILES.is_file() and "libcuda.so" in MAPPED_FILES.read_text(errors="replace")

"""Options of execution providers, and how ONNX Runtime spells them.

NVIDIA's providers have classes of options, of which onnxruntime-gpu 1.31 accepts the names and
refuses unknown ones (checked by `tests/gpu_wheel`); those of TensorRT-RTX are from the header in
the plugin's wheel. Any provider takes a mapping of options in ONNX Runtime's own spelling.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.errors import InputError, OutputError, ProviderError, UsageError, check_known
from vit_export.runtime.onnxruntime.provider_table import PROVIDERS

Profile = tuple[int, int, int]
PathLike = str | os.PathLike[str]

TF32_VARIABLE = "NVIDIA_TF32_OVERRIDE"  # "0": no NVIDIA library uses TF32
RECORDING = ("enable_cuda_graph", "trt_cuda_graph_enable")  # options that record CUDA graphs


@dataclass(frozen=True, kw_only=True)
class _Options:
    device: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("device", 0), ("memory_limit_bytes", 1)):
            value = getattr(self, name, None)
            if value is not None and (type(value) is not int or value < least):
                raise UsageError(f"{name}={value}: expected a whole number, {least} or more")

    @property
    def gpu(self) -> int:
        """The number of the GPU; the first, 0, where none was given."""
        return self.device or 0

    def session_entries(self) -> dict[str, str]:  # of the session's configuration
        return {}


@dataclass(frozen=True, kw_only=True)
class CudaOptions(_Options):
    """Options of `provider="cuda"`.

    Attributes:
        device: Number of the GPU, as CUDA counts them; by default 0.
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
        options = {"device_id": str(self.gpu), "use_tf32": str(int(self.tf32))}
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
    file gives an FP16 engine. There is none against TF32 either: the environment variable
    NVIDIA_TF32_OVERRIDE has to be set for an fp32 file, to 0, or to 1 to allow TF32.

    Attributes:
        device: Number of the GPU, as CUDA counts them; by default 0.
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
        options = {"device_id": str(self.gpu), **self.profile_options("trt", file)}
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
        device: Number of the GPU among those that the plugin supports, in its order.
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


@dataclass(frozen=True, kw_only=True)
class RawOptions(_Options):
    """Options of any provider in ONNX Runtime's own spelling.

    Attributes:
        provider: The provider.
        device: Number of its GPU.
        entries: Options beside those that the classes above set.
    """

    provider: str
    entries: Mapping[str, str]

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in RECORDING:
            if self.entries.get(name, "0").lower() not in ("0", "false"):
                raise UsageError(
                    f"options={{{name!r}: ...}}: a recorded CUDA graph reads and writes fixed "
                    "buffers, which only CudaOptions prepares",
                    hint="options=CudaOptions(cuda_graph=True)",
                )

    def provider_options(self, file: OnnxFile, version: str) -> dict[str, str]:
        options = {} if self.device is None else {"device_id": str(self.device)}
        if typed := DEFAULTS.get(self.provider):
            options = replace(typed, device=self.device).provider_options(file, version)
        return {**options, **self.entries}


ProviderOptions = CudaOptions | TensorrtOptions | TensorrtRtxOptions | RawOptions
GivenOptions = ProviderOptions | Mapping[str, Any]
DEFAULTS: dict[str, CudaOptions | TensorrtOptions | TensorrtRtxOptions] = {
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


def options_of(
    providers: Sequence[str], options: GivenOptions | None, device: int | None
) -> dict[str, ProviderOptions]:
    """Return the options of every provider to try, in their order; `"cpu"` gets empty ones.

    Args:
        providers: Names of providers.
        options: Options of one of them, or a mapping of raw options for the only one.
        device: Number of the GPU for those that number their devices.
    """
    numbered = [name for name in providers if PROVIDERS[name].numbered]
    given = options
    if isinstance(given, Mapping):
        if len(providers) != 1:
            raise UsageError(
                f"options={dict(given)}: raw options are those of one provider, not of "
                f"{', '.join(providers)}",
                hint='name it, e.g. load(path, provider="openvino", options={...})',
            )
        entries = {str(name): str(value) for name, value in given.items()}
        own = entries.pop("device_id", None) if numbered else None
        number = None if own is None else int(own) if own.isdecimal() else -1
        given = RawOptions(provider=providers[0], device=number, entries=entries)
    elif given is not None and given.provider not in providers:
        raise UsageError(
            f"{type(given).__name__} is for provider {given.provider!r}, but the provider is "
            f"{', '.join(map(repr, providers))}"
        )
    chosen: dict[str, ProviderOptions] = {}
    for name in providers:
        own_options: ProviderOptions = DEFAULTS.get(name) or RawOptions(provider=name, entries={})
        if given is not None and given.provider == name:
            own_options = given
        if device is not None and name in numbered:
            if own_options.device not in (None, device):
                raise UsageError(f"device={device}, and {own_options.device} in the options")
            own_options = replace(own_options, device=device)
        chosen[name] = own_options
    if device is not None and not numbered:
        raise UsageError(
            f"device={device}: provider {providers[0]!r} does not number its devices",
            hint='OpenVINO names them: options={"device_type": "GPU.1"}'
            if "openvino" in providers
            else "leave it out, or use the provider of a GPU",
        )
    return chosen


def set_session_options(target: Any, given: Mapping[str, Any]) -> None:
    """Set attributes of `onnxruntime.SessionOptions`, and as text what has a dot in its name."""
    known = [name for name, member in vars(type(target)).items() if isinstance(member, property)]
    for name, value in given.items():
        if "." in name:
            target.add_session_config_entry(name, str(value))
            continue
        check_known("session option", name, known)
        try:
            setattr(target, name, value)
        except TypeError as error:
            raise UsageError(
                f"session_options: {name}={value!r}: expected another type than "
                f"{type(value).__name__}"
            ) from error


def check_profile(profile: Profile | None, shapes: Mapping[str, Sequence[int]]) -> None:
    """Check that a batch is in the engine's profile; the provider would build another engine."""
    for name, (size, *_) in shapes.items():
        if profile is not None and not profile[0] <= size <= profile[2]:
            raise InputError(
                f"input {name!r} holds {size} images; the engine is built for {profile[0]} to "
                f"{profile[2]} (profile={profile})"
            )


def without_context_file(options: ProviderOptions) -> ProviderOptions:
    """Return the options for another session of the same model, which writes no context file."""
    return replace(options, ep_context=None) if isinstance(options, EngineOptions) else options


def check_tf32(provider: str, precision: str) -> None:
    """Raise ProviderError where float32 products would use TF32 without anybody's request.

    ONNX Runtime's TensorRT providers build with TF32 and have no option against it
    (microsoft/onnxruntime, issue 26029). NVIDIA's variable works where it is set before CUDA is
    used: TensorRT reads it then, TensorRT-RTX 1.7 at every build. TF32 matters little to narrower
    precisions.
    """
    if provider.startswith("tensorrt") and precision == "fp32" and TF32_VARIABLE not in os.environ:
        raise ProviderError(
            f"provider {provider!r} would compute float32 products in TF32 (10 of 23 bits), "
            f"because {TF32_VARIABLE} is not set",
            hint=f"set {TF32_VARIABLE}=0 before the process starts (or in os.environ before "
            "anything uses CUDA), or 1 to allow TF32",
        )

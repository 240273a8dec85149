"""Execution providers, and their options as ONNX Runtime spells them; imports no ONNX Runtime.

NVIDIA's providers have classes of options, of which onnxruntime-gpu 1.31 accepts the names and
refuses unknown ones (checked by `tests/gpu_wheel`); those of TensorRT-RTX are from the header in
the plugin's wheel. Any other provider takes a mapping.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.errors import InputError, OutputError, ProviderError, UsageError, check_known
from vit_export.host.nvidia import RTX_INSTALL, RTX_PLUGIN

Profile = tuple[int, int, int]
PathLike = str | os.PathLike[str]

TF32_VARIABLE = "NVIDIA_TF32_OVERRIDE"  # "0": no NVIDIA library uses TF32
RECORDING = ("enable_cuda_graph", "trt_cuda_graph_enable")  # options that record CUDA graphs
GPU_WHEEL = "onnxruntime-gpu[cuda,cudnn]"


@dataclass(frozen=True)
class Provider:
    """An execution provider of ONNX Runtime."""

    ort_name: str
    wheel: str = ""  # what pip installs to get it
    plugin: str = ""  # module of a wheel that adds it to the plain onnxruntime
    numbered: bool = False  # whether it takes the number of a GPU (`device_id`)
    memory: str = "cpu"  # where the tensors of a run lie, in ONNX Runtime's spelling
    build: str = ""  # hint where no wheel adds it
    needs: str = ""  # the machine that can run it, as hints begin


NVIDIA = "on a machine with an NVIDIA GPU: "


PROVIDERS = {
    "cpu": Provider("CPUExecutionProvider", "onnxruntime"),
    "cuda": Provider(
        "CUDAExecutionProvider", GPU_WHEEL, numbered=True, memory="cuda", needs=NVIDIA
    ),
    "tensorrt": Provider(
        "TensorrtExecutionProvider", GPU_WHEEL, numbered=True, memory="cuda", needs=NVIDIA
    ),
    "tensorrt-rtx": Provider(
        "NvTensorRTRTXExecutionProvider", RTX_INSTALL.split()[-1], RTX_PLUGIN, numbered=True,
        needs=NVIDIA,
    ),
    "openvino": Provider("OpenVINOExecutionProvider", "onnxruntime-openvino"),
    "coreml": Provider(
        "CoreMLExecutionProvider", build="the wheels of onnxruntime contain it", needs="on a Mac: "
    ),
    "directml": Provider(
        "DmlExecutionProvider", "onnxruntime-directml", numbered=True, needs="on Windows: "
    ),
    # a plugin from version 2 on; before, a wheel of ONNX Runtime
    "qnn": Provider(
        "QNNExecutionProvider", "onnxruntime-qnn", "onnxruntime_qnn",
        needs="on a machine with a Qualcomm NPU: ",
    ),
    "xnnpack": Provider("XnnpackExecutionProvider", build="build onnxruntime with --use_xnnpack"),
    "migraphx": Provider(
        "MIGraphXExecutionProvider", "onnxruntime-migraphx", numbered=True,
        needs="on a machine with an AMD GPU: ",
    ),
}  # fmt: skip
AUTO = ("cuda", "cpu")  # best first; TensorRT builds an engine for minutes, so it is left out


@dataclass(frozen=True, kw_only=True)
class _Options:
    device: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("device", 0), ("memory_limit_bytes", 1)):
            value = getattr(self, name, None)
            if value is not None and (type(value) is not int or value < least):
                raise UsageError(f"{name}={value!r}: expected a whole number, {least} or more")

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
        sizes = self.profile
        if sizes is not None and not (
            isinstance(sizes, list | tuple)
            and [*map(type, sizes)] == [int] * 3
            and 1 <= sizes[0] <= sizes[1] <= sizes[2]
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
            if not spec.dynamic or spec.dynamic != spec.shape[:1]:
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
    """Options of any provider in ONNX Runtime's own spelling, over the defaults of this package."""

    provider: str
    entries: Mapping[str, str]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.provider == "cpu" and self.entries:  # ONNX Runtime would ignore them
            raise UsageError(
                f"options={dict(self.entries)}: provider 'cpu' has no options",
                hint="threads and session_options configure it",
            )
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


def check_provider(name: str) -> None:
    """Raise UsageError for an unknown provider; ONNX Runtime's names offer the short ones."""
    for short, kind in PROVIDERS.items():
        if name.lower() == kind.ort_name.lower():
            raise UsageError(f"unknown provider {name!r}; did you mean {short!r}?")
    check_known("provider", name, ("auto", *PROVIDERS))


def options_of(
    providers: Sequence[str], options: GivenOptions | None, device: int | None
) -> dict[str, ProviderOptions]:
    """Return the options of every provider to try, those of `load` included."""
    numbered = [name for name in providers if name != "auto" and PROVIDERS[name].numbered]
    if isinstance(options, Mapping):
        if len(providers) != 1 or providers[0] == "auto":
            raise UsageError(
                f"options={dict(options)}: raw options are those of one provider, not of "
                f"{', '.join(providers)}",
                hint='name it, e.g. load(path, provider="openvino", options={...})',
            )
        entries = {str(name): str(value) for name, value in options.items()}
        number: Any = entries.pop("device_id", None) if numbered else None
        number = int(number) if number and number.isdecimal() else number
        options = RawOptions(provider=providers[0], device=number, entries=entries)
    if options is not None and not isinstance(options, ProviderOptions):
        raise UsageError(f"options={options!r}: expected e.g. CudaOptions(), or a mapping")
    if options is not None and options.provider not in providers:
        raise UsageError(
            f"{type(options).__name__} is for provider {options.provider!r}, but the provider is "
            f"{', '.join(map(repr, providers))}"
        )
    if device is not None and not numbered:
        raise UsageError(
            f"device={device}: provider {providers[0]!r} does not number its devices",
            hint='OpenVINO names them: options={"device_type": "GPU.1"}'
            if "openvino" in providers
            else "leave it out, or use the provider of a GPU",
        )
    chosen = {
        name: DEFAULTS.get(name) or RawOptions(provider=name, entries={}) for name in providers
    }
    if options is not None:
        chosen[options.provider] = options
    for name in numbered if device is not None else ():
        if chosen[name].device not in (None, device):
            raise UsageError(f"device={device}, and {chosen[name].device} in the options")
        chosen[name] = replace(chosen[name], device=device)
    return chosen


def set_session_options(target: Any, given: Mapping[str, Any]) -> None:
    """Set attributes of `onnxruntime.SessionOptions`, and as text what has a dot in its name."""
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise UsageError(f"session_options={given!r}: expected a mapping from names to values")
    known = [name for name, member in vars(type(target)).items() if isinstance(member, property)]
    for name, value in given.items():
        if "." in name:  # where ONNX Runtime writes "1" and "0"
            text = str(int(value) if isinstance(value, bool) else value)
            target.add_session_config_entry(name, text)
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
    if profile is None:
        return
    for name, (size, *_) in shapes.items():  # `profile_options` has refused single numbers
        if not profile[0] <= size <= profile[2]:
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
    (microsoft/onnxruntime, issue 26029). TensorRT reads NVIDIA's variable when CUDA is first used,
    TensorRT-RTX 1.7 at every build.
    """
    if provider.startswith("tensorrt") and precision == "fp32" and TF32_VARIABLE not in os.environ:
        raise ProviderError(
            f"provider {provider!r} would compute float32 products in TF32 (10 of 23 bits), "
            f"because {TF32_VARIABLE} is not set",
            hint=f"set {TF32_VARIABLE}=0 before the process starts (or in os.environ before "
            "anything uses CUDA), or 1 to allow TF32",
        )

"""What may be asked of an NVIDIA provider, and how ONNX Runtime spells it.

Names and spellings are those that the provider libraries of onnxruntime-gpu 1.31 accept (they
refuse unknown ones; `tests/gpu_wheel` asks them) and, for TensorRT-RTX, those of the header that
the plugin's wheel brings. That they have the effect described is NVIDIA's and ONNX Runtime's
word: `scripts/verify_gpu` looks at some of it on a machine with a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.errors import InputError, OutputError, UsageError
from vit_export.runtime.onnxruntime.tf32 import TF32_VARIABLE

Profile = tuple[int, int, int]
PathLike = str | os.PathLike[str]


def _check_bad_device(device_id: int) -> None:
    """Raise UsageError for a number that a list would count from its end."""
    if device_id < 0:
        raise UsageError(f"device_id={device_id}: expected 0 or more")


def _make_folder(option: str, folder: Path) -> None:
    """Make a folder that an option names, or raise OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{option}: the folder {folder} cannot be made: {error.strerror or error}"
        ) from error


@dataclass(frozen=True, kw_only=True)
class CudaOptions:
    """Options of `provider="cuda"`.

    Attributes:
        device_id: Which GPU, as CUDA numbers them.
        tf32: Let float32 products keep 10 of 23 bits of the mantissa, for speed; ONNX Runtime's
            own default is to let them.
        cuda_graph: Record the kernels of a run once per batch size and replay them. `run` then
            copies in and out of fixed buffers; every node must have a CUDA kernel.
        memory_limit_bytes: Of the arena that ONNX Runtime allocates tensors from.
    """

    provider: ClassVar[str] = "cuda"
    device_id: int = 0
    tf32: bool = False
    cuda_graph: bool = False
    memory_limit_bytes: int | None = None

    def __post_init__(self) -> None:
        """Refuse a GPU before the first, and a limit that holds nothing."""
        _check_bad_device(self.device_id)
        if self.memory_limit_bytes is not None and self.memory_limit_bytes < 1:
            raise UsageError(f"memory_limit_bytes={self.memory_limit_bytes}: expected 1 or more")

    def provider_options(self, file: OnnxFile, version: str) -> dict[str, str]:
        """As ONNX Runtime takes them; see `TensorrtOptions.provider_options`."""
        options = {"device_id": str(self.device_id), "use_tf32": str(int(self.tf32))}
        if self.cuda_graph:
            options["enable_cuda_graph"] = "1"
        if self.memory_limit_bytes is not None:
            options["gpu_mem_limit"] = str(self.memory_limit_bytes)
        return options

    def session_entries(self) -> dict[str, str]:
        """Entries of the session's configuration: none."""
        return {}


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What the two providers that build engines have in common."""

    device_id: int = 0
    profile: Profile | None = None
    ep_context: PathLike | None = None

    def __post_init__(self) -> None:
        """Refuse a GPU before the first, a profile out of order, and a dump of another kind."""
        _check_bad_device(self.device_id)
        if self.profile is not None and not (
            len(self.profile) == 3 and 1 <= self.profile[0] <= self.profile[1] <= self.profile[2]
        ):
            raise UsageError(
                f"profile={self.profile}: expected the batch sizes (min, opt, max), rising from 1"
            )
        if self.ep_context is not None and Path(self.ep_context).suffix != ".onnx":
            raise UsageError(f"ep_context={str(self.ep_context)!r}: expected a name in .onnx")

    def check_dump(self, file: OnnxFile) -> None:
        """Refuse a context file that cannot be dumped, before an engine is built for minutes.

        Raises:
            OutputError: It exists, or its folder does not.
            UsageError: The batch size is dynamic and no profile says for which ones to build.
        """
        if self.ep_context is None:
            return
        path = Path(self.ep_context)
        if path.exists():
            raise OutputError(f"ep_context: {path} exists; remove it, or give another name")
        if not path.parent.is_dir():
            raise OutputError(f"ep_context: the folder {path.parent} does not exist")
        if self.profile is None and any(spec.dynamic for spec in file.inputs):
            raise UsageError(
                f"ep_context needs profile=(min, opt, max): {file.path.name} takes any batch size, "
                "and an engine is built for some"
            )

    def shapes(self, file: OnnxFile) -> tuple[str, str, str]:
        """The profile as TensorRT providers spell it, e.g. `"pixel_values:8x3x224x224"`.

        Raises:
            UsageError: The batch size is fixed, or another dimension is dynamic too.
        """
        for spec in file.inputs:
            if not spec.shape or not isinstance(spec.shape[0], str):
                raise UsageError(f"profile={self.profile}: the batch of {spec} is fixed")
            if len(spec.dynamic) > 1:
                raise UsageError(
                    f"profile={self.profile}: more than the batch is dynamic in {spec}; a profile "
                    "names batch sizes only"
                )
        minimum, optimum, maximum = (
            ",".join(
                f"{spec.name}:{'x'.join(map(str, (size, *spec.shape[1:])))}" for spec in file.inputs
            )
            for size in self.profile or ()
        )
        return minimum, optimum, maximum


@dataclass(frozen=True, kw_only=True)
class TensorrtOptions(EngineOptions):
    """Options of `provider="tensorrt"`, TensorRT inside ONNX Runtime.

    There is no precision to choose: without `trt_fp16_enable` and its like the provider builds a
    strongly typed network, so that an FP16 file gives an FP16 engine and nothing else does. It
    has no option against TF32 either: `tf32.py` keeps it out of the
    process.

    Attributes:
        device_id: Which GPU, as CUDA numbers them.
        profile: Batch sizes (min, opt, max) that the engine is built for, at once. Without it an
            engine is built when a run needs one, and again when the batch size leaves its range.
        ep_context: File to dump: an `.onnx` with the engine inside, which `load` takes with the
            same provider and which starts without a build. It carries the manifest along.
        engine_cache: Folder for engines and timings. In it every model has its own, named after
            its content, ONNX Runtime's version and whether TF32 was allowed: ONNX Runtime itself
            finds engines by the model's file name, and would run one of other weights.
    """

    provider: ClassVar[str] = "tensorrt"
    engine_cache: PathLike | None = None

    def __post_init__(self) -> None:
        """Refuse a cache together with a dump: the provider takes only one folder for both."""
        super().__post_init__()
        if self.engine_cache is not None and self.ep_context is not None:
            raise UsageError(
                "engine_cache and ep_context: give one; a dumped context holds its engine already"
            )

    def provider_options(self, file: OnnxFile, version: str) -> dict[str, str]:
        """As ONNX Runtime takes them.

        Args:
            file: The model.
            version: Of ONNX Runtime.

        Raises:
            OutputError: The cache's folder cannot be made.
            UsageError: The profile does not fit the model.
        """
        options = {"device_id": str(self.device_id)}
        if self.profile is not None:
            names = ("trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_profile_max_shapes")
            options |= dict(zip(names, self.shapes(file), strict=True))
        if self.engine_cache is not None:
            name = f"{file.path.stem}-{file.graph_sha256()[:16]}-ort{version}"
            if os.environ.get(TF32_VARIABLE) != "0":
                name += "-tf32"
            folder = Path(self.engine_cache) / name
            _make_folder("engine_cache", folder)
            options |= {
                "trt_engine_cache_enable": "True",
                "trt_engine_cache_path": str(folder),
                "trt_timing_cache_enable": "True",
                "trt_timing_cache_path": str(folder),
            }
        if self.ep_context is not None:
            options |= {
                "trt_dump_ep_context_model": "True",
                "trt_ep_context_file_path": str(Path(self.ep_context).absolute()),
                "trt_ep_context_embed_mode": "1",
            }
        return options

    def session_entries(self) -> dict[str, str]:
        """Entries of the session's configuration: none, the dump is the provider's own."""
        return {}


@dataclass(frozen=True, kw_only=True)
class TensorrtRtxOptions(EngineOptions):
    """Options of `provider="tensorrt-rtx"`, the plugin for GeForce RTX and RTX PRO cards.

    Attributes:
        device_id: Which of the GPUs that the plugin supports, in its order.
        profile: Batch sizes (min, opt, max); without it the plugin infers the ranges.
        ep_context: File to dump, as for `TensorrtOptions`.
        runtime_cache: Folder for kernels that the plugin compiles at first use.
    """

    provider: ClassVar[str] = "tensorrt-rtx"
    runtime_cache: PathLike | None = None

    def provider_options(self, file: OnnxFile, version: str) -> dict[str, str]:
        """As the plugin takes them; see `TensorrtOptions.provider_options`."""
        options: dict[str, str] = {}
        if self.profile is not None:
            names = ("nv_profile_min_shapes", "nv_profile_opt_shapes", "nv_profile_max_shapes")
            options |= dict(zip(names, self.shapes(file), strict=True))
        if self.runtime_cache is not None:
            _make_folder("runtime_cache", Path(self.runtime_cache))
            options["nv_runtime_cache_path"] = str(self.runtime_cache)
        return options

    def session_entries(self) -> dict[str, str]:
        """Entries of the session's configuration that ask for the dump."""
        if self.ep_context is None:
            return {}
        return {
            "ep.context_enable": "1",
            "ep.context_file_path": str(Path(self.ep_context).absolute()),
            "ep.context_embed_mode": "1",
        }


ProviderOptions = CudaOptions | TensorrtOptions | TensorrtRtxOptions
DEFAULTS: dict[str, ProviderOptions] = {
    "cuda": CudaOptions(),
    "tensorrt": TensorrtOptions(),
    "tensorrt-rtx": TensorrtRtxOptions(),
}


def chosen(provider: str, options: ProviderOptions | None) -> tuple[str, ProviderOptions | None]:
    """The provider that is meant, and its options; none for `"cpu"` and `"auto"`.

    Raises:
        UsageError: The options belong to another provider.
    """
    if options is None:
        return provider, DEFAULTS.get(provider)
    if provider not in ("auto", options.provider):
        raise UsageError(
            f"{type(options).__name__} is for provider {options.provider!r}, and {provider!r} was "
            "asked for"
        )
    return options.provider, options


def check_profile(options: ProviderOptions | None, shapes: Mapping[str, Sequence[int]]) -> None:
    """Refuse a batch that the engine was not built for, before the provider builds another.

    Args:
        options: Of the provider.
        shapes: Of every input, by name.

    Raises:
        InputError: Naming the input, its batch size and the profile.
    """
    if not isinstance(options, EngineOptions) or options.profile is None:
        return
    smallest, _, largest = options.profile
    for name, shape in shapes.items():
        size = shape[0] if shape else 0
        if not smallest <= size <= largest:
            raise InputError(
                f"input {name!r} holds {size} images; the engine is built for {smallest} to "
                f"{largest} (profile={options.profile})"
            )


def without_dump(options: ProviderOptions | None) -> ProviderOptions | None:
    """The same options for a further session, which must not dump its context again."""
    if isinstance(options, TensorrtOptions | TensorrtRtxOptions):
        return replace(options, ep_context=None)
    return options

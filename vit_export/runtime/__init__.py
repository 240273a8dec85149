"""Run an artifact on a device: needs numpy and one backend, no torch and no onnx.

    from vit_export.runtime import load

    model = load("vit_b16.onnx")            # or provider="cpu", "cuda", "tensorrt", "tensorrt-rtx"
    model.classify("cat.jpg", top=5)        # [Prediction(index, label, score), ...]
    model.embed(["a.jpg", "b.jpg"])         # float32 (2, D)
    model(pixel_values)                     # {"logits": float32 (B, num_classes)}

numpy, ONNX Runtime and TensorRT are imported when a file is loaded.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_export.artifact.engine_sidecar import is_engine
from vit_export.artifact.labels import Labels
from vit_export.artifact.open_file import open_file
from vit_export.artifact.preprocess import Preprocess
from vit_export.artifact.vocabulary import ENGINE_SUFFIXES
from vit_export.errors import (
    ArtifactError,
    DataError,
    EngineError,
    GateError,
    ImageError,
    InputError,
    ProviderError,
    ProviderWarning,
    UsageError,
    VitExportError,
)
from vit_export.runtime.onnxruntime.options import (
    CudaOptions,
    GivenOptions,
    TensorrtOptions,
    TensorrtRtxOptions,
)

if TYPE_CHECKING:
    from vit_export.runtime.model import Model
    from vit_export.runtime.prediction import Prediction

__all__ = [
    "ArtifactError",
    "CudaOptions",
    "DataError",
    "EngineError",
    "GateError",
    "ImageError",
    "InputError",
    "Model",
    "Prediction",
    "Preprocess",
    "ProviderError",
    "ProviderWarning",
    "TensorrtOptions",
    "TensorrtRtxOptions",
    "UsageError",
    "VitExportError",
    "load",
    "load_engine",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import a class whose module needs numpy, when it is first used."""
        if name not in ("Model", "Prediction"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module("vit_export.runtime.model"), name)


def load(
    path: str | os.PathLike[str],
    *,
    provider: str | Sequence[str] = "auto",
    device: int | None = None,
    options: GivenOptions | None = None,
    session_options: Mapping[str, Any] | None = None,
    preprocess: Preprocess | None = None,
    labels: Labels | None = None,
    threads: int | None = None,
) -> Model:
    """Load an `.onnx` file, or an engine (`.engine`, `.plan` or `.trt`).

    Args:
        path: The artifact. For an engine, `load_engine` has more options.
        provider: `"cpu"`, `"cuda"`, `"tensorrt"`, `"tensorrt-rtx"`, `"openvino"`, `"coreml"`,
            `"directml"`, `"qnn"`, `"xnnpack"`, `"migraphx"`, or `"auto"` for the best of cuda and
            cpu that is really active. A list is tried in its order. `Model.provider` names the one
            that was chosen, `Model.rejected` says why not those before it.
        device: Number of the GPU, as CUDA counts them; by default that of the options, or 0.
        options: Options of an NVIDIA provider, whose class names the provider too; or a mapping
            of options in ONNX Runtime's spelling, for the provider that is named.
        session_options: Attributes of `onnxruntime.SessionOptions` by name; a name with a dot,
            e.g. `"session.intra_op.allow_spinning"`, is an entry of the session's configuration.
        preprocess: How images are prepared; by default as in the file's manifest.
        labels: Class names: a list, a mapping from class number to name, or the path of a file
            as `--labels` takes it; by default those of the manifest.
        threads: CPU threads of one run of an `.onnx` file, at most 256; by default the backend's
            choice, or the CPUs that the affinity and the container's quota leave to this process.

    Raises:
        ArtifactError: The file is missing, damaged, or lacks its weights.
        ProviderError: The backend is not installed, or the requested provider is not active.
        UsageError: An argument does not fit the file or the others, or labels cannot be read.
        GateError, EngineError: As `load_engine`.

    Warns:
        ProviderWarning: `"auto"` rejected a provider that the installed onnxruntime should have.
    """
    from vit_export.runtime.model import Model

    if is_engine(path):
        given = {"options": options, "session_options": session_options, "threads": threads}
        for name, value in given.items():
            if value is not None:
                raise UsageError(
                    f"{path}: {name}={value} is for .onnx files",
                    hint="leave it out; an engine's options are fixed when it is built",
                )
        return load_engine(
            path, provider=provider, device=device, preprocess=preprocess, labels=labels
        )
    try:
        from vit_export.runtime.onnxruntime.runner import OrtRunner
    except ModuleNotFoundError as error:
        raise ProviderError(
            f"cannot run {Path(path).name}: {error.name} is not installed",
            hint="pip install 'vit-export[cpu]' (or 'vit-export[gpu]' with an NVIDIA GPU)",
        ) from error
    runner = OrtRunner(
        path, provider=provider, device=device, options=options, session_options=session_options,
        threads=threads,
    )  # fmt: skip
    if provider in ("auto", ["auto"], ("auto",)):
        for reason in runner.rejected.values():
            message = f"{Path(path).name} runs on {runner.provider!r}: {reason}"
            warnings.warn(message, ProviderWarning, stacklevel=2)
    return Model(runner, preprocess=preprocess, labels=labels)


def load_engine(
    path: str | os.PathLike[str],
    *,
    provider: str | Sequence[str] = "auto",
    device: int | None = None,
    rebuild: bool = False,
    trusted: bool = False,
    allow_host_code: bool = False,
    runtime_cache: str | os.PathLike[str] | None = None,
    preprocess: Preprocess | None = None,
    labels: Labels | None = None,
) -> Model:
    """Load a TensorRT engine that `build_engine` has written.

    Args:
        path: The `.engine`, `.plan` or `.trt` file, with its sidecar.
        provider: `"auto"`, or the one that the engine was built for.
        device: Number of the GPU; by default the one that the calling thread uses.
        rebuild: Build the engine again from its .onnx file if TensorRT's version or the GPU differ.
        trusted: Skip the golden check at first load.
        allow_host_code: Let a version-compatible engine run the code it contains, on the CPU and
            with the rights of this process.
        runtime_cache: File in which TensorRT-RTX keeps the kernels that it compiles on this
            machine, so that later loads need not. It is written after the first run of each batch
            size, and when the model is closed; processes may share it.
        preprocess: As for `load`.
        labels: As for `load`.

    Raises:
        ArtifactError: The engine, its sidecar or its golden file is missing or damaged.
        EngineError: The engine cannot be rebuilt.
        GateError: It does not compute here what its torch model computes.
        OutputError: The runtime cache cannot be read, or its folder is missing.
        ProviderError: TensorRT is not installed, or the engine cannot run here.
        UsageError: Not the name of an engine, labels that cannot be read, or a runtime cache for an
            engine of TensorRT.

    Warns:
        ProviderWarning: CUDA graphs or the runtime cache cannot be used.
    """
    from vit_export.runtime.model import Model

    if not is_engine(path):
        raise UsageError(
            f"{path}: not the name of an engine ({', '.join(ENGINE_SUFFIXES)})",
            hint="rebuild, trusted, allow_host_code (--trust-host-code) and runtime_cache "
            "(--runtime-cache) are for engines; load other files with load()",
        )
    try:
        from vit_export.runtime.engine_check import open_engine
    except ModuleNotFoundError as error:
        open_file(path, what="engine").close()  # one that does not exist needs no package
        raise ProviderError(
            f"cannot run {Path(path).name}: {error.name} is not installed",
            hint="pip install 'vit-export[tensorrt]' (or 'vit-export[tensorrt-rtx]')",
        ) from error
    runner = open_engine(
        Path(path),
        provider=provider,
        device=device,
        rebuild=rebuild,
        trusted=trusted,
        allow_host_code=allow_host_code,
        runtime_cache=runtime_cache,
    )
    return Model(runner, preprocess=preprocess, labels=labels)

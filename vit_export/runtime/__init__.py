"""What the device runs: numpy, and one backend.

from vit_export.runtime import load

vit = load("vit_b16.onnx")              # or provider="cpu", "cuda", "tensorrt", "tensorrt-rtx"
vit.classify("cat.jpg", top=5)          # [Prediction(index, label, score), ...]
vit.run(pixel_values)                   # float32 (B, num_classes)

Options of NVIDIA's providers are in `vit_export.runtime.onnxruntime.options`:
`load(path, options=CudaOptions(cuda_graph=True))`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vit_export.artifact.manifest import Preprocess
from vit_export.errors import ProviderError, UsageError
from vit_export.runner import Runner

if TYPE_CHECKING:
    from vit_export.runtime.model import Model
    from vit_export.runtime.onnxruntime.options import ProviderOptions


def load(
    path: str | os.PathLike[str],
    *,
    provider: str = "auto",
    options: ProviderOptions | None = None,
    preprocess: Preprocess | None = None,
    labels: Sequence[str] | None = None,
    threads: int | None = None,
    rebuild: bool = False,
    trusted: bool = False,
    allow_host_code: bool = False,
) -> Model:
    """Load an artifact, ready to classify images or to run tensors.

    Args:
        path: An `.onnx` or `.engine` file.
        provider: `"cpu"`, `"cuda"`, `"tensorrt"`, `"tensorrt-rtx"`, or `"auto"` for the best one
            that is really active; what was chosen is the result's `provider`. An engine has one.
        options: Of an NVIDIA provider: `CudaOptions`, `TensorrtOptions` or `TensorrtRtxOptions`
            of `vit_export.runtime.onnxruntime.options`; they name the provider too.
        preprocess: How images are prepared; by default what the file's manifest says.
        labels: Class names; by default those of the manifest.
        threads: CPU threads of one run of an .onnx file; by default the backend's choice.
        rebuild: Whether an engine of another version or GPU is built again from its .onnx.
        trusted: Whether an engine that could not be measured where it was built goes without
            the golden check that its first load on a device makes.
        allow_host_code: Whether a version compatible engine may run the code in its plan,
            on the CPU and with the rights of this process.

    Raises:
        ArtifactError: The file is missing, damaged, or lacks its weights.
        GateError: An engine does not compute here what its torch model computes.
        ProviderError: The backend is not installed, or the provider asked for is not active.
        UsageError: No such provider, or options that do not fit it or the model.
    """
    from vit_export.runtime.model import Model

    if Path(path).suffix == ".engine":
        _check_for_engine(path, options, threads)
        engine = _open_engine(
            path,
            provider=provider,
            rebuild=rebuild,
            check=not trusted,
            allow_host_code=allow_host_code,
        )
        return Model(engine, preprocess=preprocess, labels=labels)
    _check_for_onnx(path, rebuild=rebuild, trusted=trusted, allow_host_code=allow_host_code)
    try:
        from vit_export.runtime.onnxruntime.runner import OrtRunner
    except ModuleNotFoundError as error:
        raise ProviderError(
            f"cannot run {Path(path).name}: {error.name} is not installed; install it with: "
            "pip install 'vit-export[cpu]' (or 'vit-export[gpu]' with an NVIDIA GPU)"
        ) from error
    runner = OrtRunner(path, provider=provider, options=options, threads=threads)
    return Model(runner, preprocess=preprocess, labels=labels)


def _check_for_engine(
    path: str | os.PathLike[str], options: ProviderOptions | None, threads: int | None
) -> None:
    """Raise UsageError for what means nothing to an engine."""
    if options is not None:
        raise UsageError(
            f"{path}: {type(options).__name__} is for an .onnx file in ONNX Runtime; what an "
            "engine does was settled when it was built"
        )
    if threads is not None:
        raise UsageError(
            f"{path}: threads={threads} is for an .onnx file; an engine computes on its GPU"
        )


def _check_for_onnx(
    path: str | os.PathLike[str], *, rebuild: bool, trusted: bool, allow_host_code: bool
) -> None:
    """Raise UsageError for what means nothing to an .onnx file."""
    asked = {
        "rebuild": rebuild,
        "trusted": trusted,
        "allow_host_code (--trust-host-code)": allow_host_code,
    }
    for name, given in asked.items():
        if given:
            raise UsageError(f"{path}: {name} is for an .engine file; leave it out")


def _open_engine(
    path: str | os.PathLike[str],
    *,
    provider: str,
    rebuild: bool,
    check: bool,
    allow_host_code: bool,
) -> Runner:
    try:
        from vit_export.runtime.engine_check import open_engine
    except ModuleNotFoundError as error:
        raise ProviderError(
            f"cannot run {Path(path).name}: {error.name} is not installed; install it with: "
            "pip install 'vit-export[tensorrt]' (or 'vit-export[tensorrt-rtx]')"
        ) from error
    return open_engine(
        Path(path), provider=provider, rebuild=rebuild, check=check, allow_host_code=allow_host_code
    )

"""Plans: check that an engine file fits this machine, then load it into TensorRT."""

from __future__ import annotations

import contextlib
import threading
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from vit_export.artifact.engine_sidecar import Gpu, Sidecar
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.open_file import replace_file
from vit_export.errors import ArtifactError, OutputError, ProviderError, ProviderWarning
from vit_export.runtime.tensorrt.backend import Backend, Messages, tensor_spec, without_names
from vit_export.runtime.tensorrt.cuda import device_memory


class IncompatibleEngineError(ProviderError):
    """An engine was built for another version or GPU; it can be rebuilt."""


def incompatibility(sidecar: Sidecar, version: str, gpu: Gpu) -> str:
    """Return why an engine does not fit a version of its backend and a GPU; `""` where it does."""
    fits = sidecar.version == version
    if not fits and sidecar.options.get("version_compatible"):
        with contextlib.suppress(InvalidVersion):
            built_by, installed = Version(sidecar.version), Version(version)
            fits = built_by.major == installed.major and installed >= built_by
    if not fits:
        return (
            f"was built with {sidecar.backend} {sidecar.version}, but {sidecar.backend} {version} "
            "is installed"
        )
    built = ""
    compatibility = sidecar.options.get("hardware_compatibility", "none")
    if compatibility == "ampere-plus":
        if Version(gpu.compute_capability) < Version("8.0"):
            built = "for compute capability 8.0 and newer"
    elif gpu.compute_capability not in sidecar.compute_capabilities:
        built = f"for compute capability {', '.join(sidecar.compute_capabilities)}"
    elif (sidecar.backend, compatibility) == ("tensorrt", "none") and (
        sidecar.gpu is None or sidecar.gpu.name != gpu.name
    ):
        built = f"on {sidecar.gpu}"
    return f"was built {built}, but the GPU here is {gpu}" if built else ""


def check_compatible(path: Path, sidecar: Sidecar, version: str, gpu: Gpu | None) -> Gpu:
    """Check that an engine can run here, and return the GPU."""
    if gpu is None:
        raise ProviderError(
            f"{path.name}: there is no NVIDIA GPU here (or no driver), and the engine was built "
            f"for compute capability {', '.join(sidecar.compute_capabilities)}",
            hint=f"run {sidecar.source_path(path)} with --provider cpu, or see: vit-export doctor",
        )
    if why := incompatibility(sidecar, version, gpu):
        raise IncompatibleEngineError(
            f"{path.name}: {why}", hint=f"rebuild it here: {sidecar.rebuild_command(path)}"
        )
    return gpu


def find_source(path: Path, sidecar: Sidecar) -> Path:
    """Return the .onnx file that an engine was built from; ArtifactError if it has changed."""
    source = sidecar.source_path(path)
    if not source.is_file():
        raise ArtifactError(
            f"{path.name}: the .onnx file that it was built from is missing ({source})",
            hint="copy that file together with the engine",
        )
    found = OnnxFile.read(source).graph_sha256()
    if found != sidecar.source_sha256:
        raise ArtifactError(
            f"{source}: is not the file that {path.name} was built from (graph_sha256 is "
            f"{found[:12]}, expected {sidecar.source_sha256[:12]})",
            hint=f"copy that file here, or build a new engine: {sidecar.rebuild_command(path)}",
        )
    return source


class RuntimeCache:
    """File of the kernels that TensorRT-RTX compiled; of two processes, the later one wins."""

    def __init__(self, engine: Any, path: Path) -> None:
        self._path, self._saved, self._writes = path, b"", True
        self._shapes: set[object] = set()
        self._lock = threading.Lock()
        try:
            if not path.parent.is_dir():
                raise FileNotFoundError("there is no such folder")
            if path.exists():
                self._saved = path.read_bytes()
        except OSError as error:
            raise OutputError(
                f"{path}: cannot be the runtime cache ({error.strerror or error})",
                hint="name another file",
            ) from error
        runtime_config = engine.create_runtime_config()
        self.kernels = runtime_config.create_runtime_cache()  # contexts fill it
        if self._saved and not self.kernels.deserialize(self._saved):
            self._stop(
                "neither used nor replaced: it is the runtime cache of another TensorRT-RTX, GPU "
                "or driver, or none at all; delete it, or name another file"
            )

    def _stop(self, problem: str) -> None:
        self._writes = False
        warnings.warn(f"{self._path}: {problem}", ProviderWarning, stacklevel=3)

    def use(self, runtime_config: Any) -> None:
        """Give the kernels to a context that is created with this configuration."""
        if not runtime_config.set_runtime_cache(self.kernels) and self._writes:
            self._stop("neither used nor replaced: TensorRT-RTX does not accept the runtime cache")

    def save_after(self, shapes: object) -> None:
        """Write the file after the first run of shapes, for which kernels may be new."""
        if shapes not in self._shapes:
            self._shapes.add(shapes)
            self.save()

    def save(self) -> None:
        """Write the file if there are new kernels."""
        with self._lock:
            kernels = bytes(memoryview(self.kernels.serialize()))
            if self._writes and kernels != self._saved:
                try:
                    replace_file(self._path, kernels)
                    self._saved = kernels
                except OSError as error:
                    self._stop(f"the runtime cache cannot be written: {error.strerror or error}")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A loaded engine, with the objects that must live as long as it does."""

    backend: Backend
    runtime: Any  # IRuntime
    engine: Any  # ICudaEngine
    sidecar: Sidecar
    runtime_cache: RuntimeCache | None = None
    memory: Any = field(default_factory=device_memory)  # pool of all buffers and results

    @classmethod
    def load(
        cls,
        backend: Backend,
        path: Path,
        sidecar: Sidecar,
        plan: bytes,
        *,
        allow_host_code: bool,
        runtime_cache: Path | None,
    ) -> Plan:
        """Load an engine, from the content of its file, on the GPU that this thread uses."""
        trt = backend.trt
        with backend.collect_messages() as messages:
            runtime = trt.Runtime(backend.logger)
            if sidecar.options.get("version_compatible"):
                if not allow_host_code:
                    raise ProviderError(
                        f"{path.name}: is version compatible, so its plan contains code that runs "
                        "on the CPU",
                        hint="if you trust where it comes from: load_engine(..., "
                        "allow_host_code=True), or --trust-host-code",
                    )
                runtime.engine_host_code_allowed = True
            engine = runtime.deserialize_cuda_engine(plan)
            if engine is None:
                raise ArtifactError(
                    f"{path.name}: {backend.name} {backend.version} cannot load it: "
                    f"{messages.reason()}",
                    hint=f"rebuild it: {sidecar.rebuild_command(path)}",
                )
            if sidecar.options.get("strip"):
                _refit(backend, engine, find_source(path, sidecar), messages)
            if sidecar.options.get("weight_streaming"):
                engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
        cache = None if runtime_cache is None else RuntimeCache(engine, runtime_cache)
        loaded = cls(backend=backend, runtime=runtime, engine=engine, sidecar=sidecar,
                     runtime_cache=cache)  # fmt: skip
        loaded._check_signature(path)
        return loaded

    def _check_signature(self, path: Path) -> None:
        """Raise ArtifactError unless tensors and profiles are those of the sidecar."""
        engine, manifest = self.engine, self.sidecar.manifest
        found, expected = [], []
        for name in (engine.get_tensor_name(index) for index in range(engine.num_io_tensors)):
            spec = tensor_spec(name, engine.get_tensor_dtype(name), engine.get_tensor_shape(name))
            found.append(f"{engine.get_tensor_mode(name).name.lower()} {spec}")
        for kind, specs in (("input", manifest.inputs), ("output", manifest.outputs)):
            expected += [f"{kind} {without_names(spec)}" for spec in specs]
        for index, profile in enumerate(self.sidecar.profiles):
            for name, shapes in profile.items():
                built = tuple(map(tuple, engine.get_tensor_profile_shape(name, index)))
                found.append(f"profile {index} of {name} {built}")
                expected.append(f"profile {index} of {name} {shapes.min, shapes.opt, shapes.max}")
        if sorted(found) != sorted(expected):
            raise ArtifactError(
                f"{path.name}: the engine has {'; '.join(found)}; its sidecar describes "
                f"{'; '.join(expected)}: the files belong to two engines"
            )


def _refit(backend: Backend, engine: Any, source: Path, messages: Messages) -> None:
    """Load the weights of a stripped engine from the .onnx file that it was built from."""
    refitter = backend.trt.Refitter(engine, backend.logger)
    parser = backend.trt.OnnxParserRefitter(refitter, backend.logger)
    if not parser.refit_from_file(str(source)) or not refitter.refit_cuda_engine():
        raise ArtifactError(
            f"{source}: {backend.name} cannot load the engine's weights from it: "
            f"{messages.reason()}"
        )

"""ONNX Runtime, strict: what was asked for is what runs, or an error says why not."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import os
import threading
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as native

from vit_export.errors import ArtifactError, InputError, ProviderError, UsageError, nearest
from vit_export.manifest import TensorSpec
from vit_export.memory import give_back
from vit_export.onnxfile import OnnxFile
from vit_export.probe import in_child, probe_provider
from vit_export.runtime.tensors import check_array, check_feeds, check_names, fits

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
AUTO = ("cuda", "cpu")  # best first; a TensorRT engine takes minutes to build, so ask for it
OPTIONS: dict[str, dict[str, str]] = {"cuda": {"use_tf32": "0"}}  # TF32 keeps 10 bits of 23
MAY_RUN_ON_CPU = frozenset({"Shape", "Size"})  # their result is host memory by definition
GPU_INSTALL = (
    "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu[cuda,cudnn]'"
)
MAPPED_FROM_BYTES = 1 << 28  # of weights, which the CPU then reads where they lie in the file
_WARNINGS, _FATAL_ONLY = 2, 4  # onnxruntime's logging severities
_BACKEND_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    *(e for e in vars(native).values() if isinstance(e, type) and issubclass(e, Exception)),
)


class FallbackError(ProviderError):
    """ONNX Runtime started another provider than the one it was given."""


class OrtRunner:
    """One ONNX file in one ONNX Runtime session; threads may share it.

    Args:
        path: The `.onnx` file.
        provider: `"cpu"`, `"cuda"`, `"tensorrt"` or `"auto"`.
        expose: Inner tensors to give as outputs as well.
        threads: CPU threads of one run; by default all cores.

    Attributes:
        provider: What really runs the model.
        rejected: Providers that `"auto"` passed over, with the reason.

    Raises:
        UsageError: No such provider.
        ArtifactError: The file is missing, damaged or lacks its weights.
        ProviderError: The provider asked for is not what would run the model.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        provider: str = "auto",
        expose: Collection[str] = (),
        threads: int | None = None,
    ) -> None:
        if provider not in (*PROVIDERS, "auto"):
            raise UsageError(
                f"unknown provider {provider!r}{nearest(provider, PROVIDERS)} "
                f"(known: auto, {', '.join(PROVIDERS)})"
            )
        self.path = Path(path)
        self.file = OnnxFile.read(path)
        self.file.check_external_data()
        self.manifest = self.file.manifest
        self.rejected: dict[str, str] = {}
        self._threads = threads
        self._exposed = tuple(expose)
        self._lock = threading.Lock()
        self._held: ort.InferenceSession | None
        self.provider, self._held = self._open(provider)
        self.inputs = self.file.inputs
        known = {spec.name: spec for spec in self.file.outputs}
        self.outputs = tuple(
            known.get(value.name, TensorSpec(value.name, "", ()))
            for value in self._session.get_outputs()
        )

    @property
    def _session(self) -> ort.InferenceSession:
        with self._lock:
            if self._held is None:
                self._held = self._create(self.provider)
            return self._held

    def release(self) -> None:
        """Free the session and its copy of the weights; the next run loads them again."""
        self._held = None
        give_back()

    def _open(self, provider: str) -> tuple[str, ort.InferenceSession]:
        if provider != "auto":
            try:
                return provider, self._create(provider)
            except FallbackError as error:
                raise ProviderError(f"{error}{_cause(provider)}") from None
        for candidate in AUTO[:-1]:
            if PROVIDERS[candidate] not in ort.get_available_providers() and not _both_wheels():
                continue  # a CPU build: nobody expects a GPU from it
            try:
                return candidate, self._create(candidate)
            except ProviderError as error:
                self.rejected[candidate] = str(error)
        return AUTO[-1], self._create(AUTO[-1])

    def _create(self, provider: str) -> ort.InferenceSession:
        if provider != "cpu":
            _refuse_unusable_wheel(provider)
        options = ort.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        chosen = [(PROVIDERS[provider], OPTIONS.get(provider, {}))]
        try:
            with _quiet(provider):
                session = self._session_of(options, chosen)
        except _BACKEND_ERRORS as error:
            if provider == "cpu":
                raise ArtifactError(
                    f"{self.path}: ONNX Runtime {ort.__version__} cannot load it: {_line(error)}"
                ) from error
            raise ProviderError(
                f"provider {provider!r} cannot run {self.path.name}: {_line(error)}; "
                "see: vit-export doctor"
            ) from error
        _refuse_fallback(session, provider, self.path.name)
        return session

    def _session_of(
        self, options: ort.SessionOptions, providers: list[tuple[str, dict[str, str]]]
    ) -> ort.InferenceSession:
        mapped = (
            providers[0][0] == PROVIDERS["cpu"] and self.file.weights_bytes >= MAPPED_FROM_BYTES
        )
        if not self._exposed and not mapped:
            return ort.InferenceSession(str(self.path), options, providers=providers)
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path",
            str(self.path.parent.resolve()),
        )
        return ort.InferenceSession(self.file.expose(self._exposed), options, providers=providers)

    @property
    def _patch_size(self) -> int:
        """What dynamic heights and widths must be multiples of, as the manifest says."""
        return int(self.manifest.config.get("patch_size", 1)) if self.manifest else 1

    def has_tensor(self, name: str) -> bool:
        """Whether the graph computes a tensor of that name."""
        return name in self.file.values

    def expose(self, names: Collection[str]) -> OrtRunner:
        """A runner of the same file, on the same provider, that gives inner tensors as well."""
        return OrtRunner(self.path, provider=self.provider, expose=names, threads=self._threads)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Compute every output.

        Args:
            feeds: For each input a numpy array, or a tensor that speaks dlpack (e.g. a torch
                CUDA tensor, which is used where it lies).

        Returns:
            numpy arrays by output name.

        Raises:
            InputError: A wrong name, dtype or shape.
        """
        names = [spec.name for spec in self.outputs]
        if self.provider == "cpu" and all(isinstance(x, np.ndarray) for x in feeds.values()):
            check_feeds(self.inputs, feeds, patch_size=self._patch_size)
            with self._named_failures():
                return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))
        values = self.run_on_device(feeds)
        return {name: value.numpy() for name, value in values.items()}

    def run_on_device(self, feeds: Mapping[str, Any]) -> dict[str, ort.OrtValue]:
        """Compute every output and leave it on the provider's device.

        Args:
            feeds: As for `run`.

        Returns:
            OrtValues by output name; `torch.from_dlpack(value)` takes one without a copy.

        Raises:
            InputError: A wrong name, dtype or shape.
        """
        device = "cpu" if self.provider == "cpu" else "cuda"
        specs = {spec.name: spec for spec in self.inputs}
        check_names(self.inputs, feeds)
        binding = self._session.io_binding()
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, _ort_value(specs[name], value, device))
        for spec in self.outputs:
            binding.bind_output(spec.name, device)
        with self._named_failures():
            binding.synchronize_inputs()
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, binding.get_outputs(), strict=True))

    @contextlib.contextmanager
    def _named_failures(self) -> Iterator[None]:
        """Turn a backend's failure into an error that names the file."""
        try:
            yield
        except _BACKEND_ERRORS as error:
            raise ArtifactError(
                f"{self.path.name}: fails while it runs on {self.provider!r}: {_line(error)}"
            ) from error


def _ort_value(spec: TensorSpec, value: Any, device: str) -> ort.OrtValue:
    if isinstance(value, np.ndarray):
        check_array(spec, value)
        return ort.OrtValue.ortvalue_from_numpy(value, device, 0)
    if not hasattr(value, "__dlpack__"):
        raise InputError(
            f"input {spec.name!r} is a {type(value).__name__}; expected a numpy array or a "
            f"tensor that speaks dlpack ({spec})"
        )
    try:
        tensor = ort.OrtValue.from_dlpack(value)
    except (BufferError, RuntimeError) as error:
        raise InputError(
            f"input {spec.name!r} cannot be taken where it lies ({_line(error)}); give it as "
            "x.detach().contiguous()"
        ) from error
    dtype = tensor.data_type().removeprefix("tensor(").removesuffix(")")
    dtype = {"float": "float32", "double": "float64"}.get(dtype, dtype)
    if dtype != spec.dtype or not fits(spec.shape, tensor.shape()):
        raise InputError(f"input {spec.name!r} is {dtype} {tuple(tensor.shape())}, expected {spec}")
    return tensor


def _line(error: BaseException) -> str:
    """The first line of a backend's message, without its prefix."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split("] : ")[-1].strip()


@contextlib.contextmanager
def _quiet(provider: str) -> Iterator[None]:
    """Silence what onnxruntime prints and logs when it falls back: an error will say it."""
    if provider == "cpu":
        yield
        return
    ort.set_default_logger_severity(_FATAL_ONLY)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        ort.set_default_logger_severity(_WARNINGS)  # as onnxruntime starts


def _cause(provider: str) -> str:
    """Why a provider does not start, as the dynamic loader says it in another process."""
    error = in_child(probe_provider, PROVIDERS[provider]).get("error", "")
    return f" ({error})" if error else ""


def installed_wheels() -> list[str]:
    """Names of the installed wheels that provide `import onnxruntime`."""
    found = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.distribution(name)
            found.append(name)
    return found


def _both_wheels() -> bool:
    return len(installed_wheels()) > 1


def _refuse_unusable_wheel(provider: str) -> None:
    """Raise ProviderError when the installed onnxruntime cannot have the provider."""
    if _both_wheels():
        raise ProviderError(
            f"provider {provider!r}: onnxruntime and onnxruntime-gpu are both installed and "
            f"overwrite each other; keep one: {GPU_INSTALL}"
        )
    if PROVIDERS[provider] not in ort.get_available_providers():
        raise ProviderError(
            f"provider {provider!r}: the installed onnxruntime {ort.__version__} is built "
            f"without {PROVIDERS[provider]} (it has: {', '.join(ort.get_available_providers())}); "
            f"install the GPU build: {GPU_INSTALL}"
        )
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it misses; so do we, better
        ort.preload_dlls()  # the CUDA libraries that came as wheels


def _refuse_fallback(session: ort.InferenceSession, provider: str, name: str) -> None:
    """Raise ProviderError unless the provider is active and runs every node."""
    wanted = PROVIDERS[provider]
    if session.get_providers()[0] != wanted:
        raise FallbackError(
            f"provider {provider!r} was asked for, but ONNX Runtime fell back to "
            f"{session.get_providers()[0]}; --provider cpu asks for that, and `vit-export doctor` "
            "says what this machine lacks"
        )
    if provider == "cpu":
        return
    strays = [
        f"{node.name} ({node.op_type})"
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == PROVIDERS["cpu"]
        for node in part.get_nodes()
        if node.op_type not in MAY_RUN_ON_CPU
    ]
    if strays:
        shown = ", ".join(strays[:5]) + (", ..." if len(strays) > 5 else "")
        raise ProviderError(
            f"{name}: {len(strays)} of its nodes have no kernel on {provider!r} and would run "
            f"on the CPU: {shown}; export it again with another --opset or --attention, or "
            "take --provider cpu"
        )

"""Run an ONNX file in ONNX Runtime, on exactly the requested provider."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from vit_export.artifact.manifest import TensorSpec
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.errors import (
    ArtifactError,
    InputError,
    ProviderError,
    UsageError,
    check_known,
    with_article,
)
from vit_export.host.memory import trim_memory
from vit_export.runtime.checks import check_array, check_feeds, check_names, check_sizes
from vit_export.runtime.onnxruntime.cuda_graph import RecordedRuns
from vit_export.runtime.onnxruntime.options import (
    DEFAULTS,
    CudaOptions,
    EngineOptions,
    ProviderOptions,
    check_profile,
    resolve,
    without_context_file,
)
from vit_export.runtime.onnxruntime.providers import (
    AUTO,
    BACKEND_ERRORS,
    ON_DEVICE,
    PROVIDERS,
    first_line,
    worth_trying,
)
from vit_export.runtime.onnxruntime.session import SessionRequest, create_session


class OrtRunner:
    """Runs one ONNX file in one session of ONNX Runtime; threads may share it.

    Arguments and errors are those of `vit_export.runtime.load`, and OutputError where a context
    file or a cache cannot be written. `expose` names inner tensors to return as well.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        provider: str = "auto",
        options: ProviderOptions | None = None,
        expose: Collection[str] = (),
        threads: int | None = None,
    ) -> None:
        check_known("provider", provider, ("auto", *PROVIDERS))
        if threads is not None and (type(threads) is not int or threads < 1):
            raise UsageError(f"threads={threads!r}: expected a whole number, at least 1, or None")
        provider, options = resolve(provider, options)
        self.path = Path(path)
        self.file = OnnxFile.read(path)
        self.file.check_external_data()
        self.manifest = self.file.manifest
        self._patch_size = self.manifest.config.get("patch_size", 1) if self.manifest else 1
        self.rejected: dict[str, str] = {}  # providers that `"auto"` tried, with the reason
        self._lock = threading.Lock()
        self._recorded: RecordedRuns | None = None
        request = SessionRequest(
            file=self.file, provider=provider, options=options, exposed=tuple(expose),
            threads=threads,
        )  # fmt: skip
        self._request, session = self._open(request)
        self._open_session: ort.InferenceSession | None = session
        self.provider, self.options = self._request.provider, self._request.options
        self._request = replace(self._request, options=without_context_file(self.options))
        self._device = ("cpu", 0)
        if self.options is not None and self.provider in ON_DEVICE:
            self._device = ("cuda", self.options.device_id)
        self._records_graphs = isinstance(self.options, CudaOptions) and self.options.cuda_graph
        self.profile = self.options.profile if isinstance(self.options, EngineOptions) else None
        self.inputs = self.file.inputs
        known = {spec.name: spec for spec in self.file.outputs}
        self._names = [value.name for value in session.get_outputs()]
        self.outputs = tuple(known.get(name, TensorSpec(name, "", ())) for name in self._names)

    def _open(self, request: SessionRequest) -> tuple[SessionRequest, ort.InferenceSession]:
        """Create a session; for `"auto"`, of the best provider that really runs the model."""
        if request.provider == "auto":
            *candidates, last = AUTO
            for provider in filter(worth_trying, candidates):
                candidate = replace(request, provider=provider, options=DEFAULTS[provider])
                try:
                    return candidate, create_session(candidate)
                except ProviderError as error:
                    self.rejected[provider] = error.message
            request = replace(request, provider=last)
        return request, create_session(request)

    @property
    def _session(self) -> ort.InferenceSession:
        with self._lock:
            if self._open_session is None:
                self._open_session = create_session(self._request)
            return self._open_session

    def release(self) -> None:
        """Free the session and its copy of the weights; the next run loads them again."""
        self._open_session = self._recorded = None
        trim_memory()

    def has_tensor(self, name: str) -> bool:
        return name in self.file.values

    def expose(self, names: Collection[str]) -> OrtRunner:
        if set(names) <= set(self._names):
            return self
        return OrtRunner(
            self.path,
            provider=self.provider,
            options=self._request.options,
            expose=names,
            threads=self._request.threads,
        )

    def run(self, feeds: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Compute every output from numpy arrays, or from tensors that support DLPack, uncopied."""
        from_host = all(isinstance(x, np.ndarray) for x in feeds.values())
        if not self._records_graphs and (self.provider in ON_DEVICE or not from_host):
            return {name: value.numpy() for name, value in self.run_on_device(feeds).items()}
        check_feeds(self.inputs, feeds, patch_size=self._patch_size)
        check_profile(self.profile, {name: x.shape for name, x in feeds.items()})
        with self._named_failures():
            if self._records_graphs:
                return self._recorded_runs().run(feeds)
            results = self._session.run(self._names, dict(feeds))
            return dict(zip(self._names, results, strict=True))

    def _recorded_runs(self) -> RecordedRuns:
        session = self._session
        with self._lock:
            if self._recorded is None:
                self._recorded = RecordedRuns(session, self._names, self._device)
            return self._recorded

    def run_on_device(self, feeds: Mapping[str, Any]) -> dict[str, ort.OrtValue]:
        """Compute every output in the memory of the provider's device, from the feeds of `run`.

        Only numpy arrays are checked for NaN and infinity. `torch.from_dlpack` converts a result
        without a copy.
        """
        if self._records_graphs:
            raise UsageError(
                "tensors on the device were given, but a CUDA graph reads and writes fixed buffers",
                hint="give `run` numpy arrays, or load the model without cuda_graph",
            )
        check_names(self.inputs, feeds)
        values = {s.name: _ort_value(s, feeds[s.name], self._device) for s in self.inputs}
        shapes = {name: value.shape() for name, value in values.items()}
        check_sizes(self.inputs, shapes, patch_size=self._patch_size)
        check_profile(self.profile, shapes)
        binding = self._session.io_binding()
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for name in self._names:
            binding.bind_output(name, *self._device)
        with self._named_failures():
            binding.synchronize_inputs()
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()
        return dict(zip(self._names, binding.get_outputs(), strict=True))

    @contextlib.contextmanager
    def _named_failures(self) -> Iterator[None]:
        try:
            yield
        except BACKEND_ERRORS as error:
            raise ArtifactError(
                f"{self.path.name}: fails while it runs on {self.provider!r}: {first_line(error)}"
            ) from error


def _ort_value(spec: TensorSpec, value: Any, device: tuple[str, int]) -> ort.OrtValue:
    if isinstance(value, np.ndarray):
        check_array(spec, value)
        return ort.OrtValue.ortvalue_from_numpy(value, *device)
    if not hasattr(value, "__dlpack__"):
        raise InputError(
            f"input {spec.name!r} is {with_article(type(value).__name__)}; expected a numpy array "
            f"or a tensor that supports DLPack ({spec})"
        )
    try:
        tensor = ort.OrtValue.from_dlpack(value)
    except (BufferError, RuntimeError) as error:
        raise InputError(
            f"input {spec.name!r} cannot be used without a copy ({first_line(error)})",
            hint="pass `x.detach().contiguous()`",
        ) from error
    dtype = tensor.data_type().removeprefix("tensor(").removesuffix(")")
    dtype = {"float": "float32", "double": "float64"}.get(dtype, dtype)
    if dtype != spec.dtype or not spec.fits(tensor.shape()):
        raise InputError(f"input {spec.name!r} is {dtype} {tuple(tensor.shape())}, expected {spec}")
    return tensor

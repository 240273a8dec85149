"""Run an ONNX file in ONNX Runtime, on exactly the requested provider."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from vit_export.artifact.manifest import TensorSpec
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.preprocess import Preprocess
from vit_export.errors import ArtifactError, ProviderError, UsageError
from vit_export.host.memory import trim_memory
from vit_export.runtime.checks import check_feeds, check_names, check_sizes
from vit_export.runtime.onnxruntime.cuda_graph import RecordedRuns
from vit_export.runtime.onnxruntime.options import (
    AUTO,
    PROVIDERS,
    CudaOptions,
    EngineOptions,
    GivenOptions,
    ProviderOptions,
    check_profile,
    check_provider,
    options_of,
    set_session_options,
    without_context_file,
)
from vit_export.runtime.onnxruntime.providers import (
    BACKEND_ERRORS,
    first_line,
    join_hints,
    worth_trying,
)
from vit_export.runtime.onnxruntime.session import SessionRequest, create_session
from vit_export.runtime.onnxruntime.tensors import ort_value
from vit_export.runtime.onnxruntime.threads import with_threads


class OrtRunner:
    """Runs one ONNX file in one session of ONNX Runtime; threads may share it.

    Arguments and errors are those of `vit_export.runtime.load`, and OutputError where a context
    file or a cache cannot be written. `expose` names inner tensors to return as well.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        provider: str | Sequence[str] = "auto",
        device: int | None = None,
        options: GivenOptions | None = None,
        session_options: Mapping[str, Any] | None = None,
        expose: Collection[str] = (),
        threads: int | None = None,
    ) -> None:
        given = {} if session_options is None else session_options
        set_session_options(ort.SessionOptions(), given)
        given = with_threads(given, threads)
        candidates = options_of(provider_names(provider, options, device), options, device)
        self.path = Path(path)
        self.file = OnnxFile.read(path)
        self.file.check_external_data()
        self.manifest = self.file.manifest
        self._patch_size = self.manifest.config.get("patch_size", 1) if self.manifest else 1
        self.rejected: dict[str, str] = {}  # providers that were tried before, with the reason
        self._lock = threading.Lock()
        self._recorded: RecordedRuns | None = None
        requests = [
            SessionRequest(self.file, name, own, exposed=tuple(expose), session_options=given)
            for name, own in candidates.items()
        ]
        request, session, self.nodes_on_cpu = self._open(requests)
        self._open_session: ort.InferenceSession | None = session
        self.provider, self.options = request.provider, request.options
        self._request = replace(request, options=without_context_file(self.options))
        memory = PROVIDERS[self.provider].memory
        self._device = (memory, self.options.gpu if memory != "cpu" else 0)
        self._records_graphs = isinstance(self.options, CudaOptions) and self.options.cuda_graph
        self.profile = self.options.profile if isinstance(self.options, EngineOptions) else None
        self.inputs = self.file.inputs
        known = {spec.name: spec for spec in self.file.outputs}
        self._names = [value.name for value in session.get_outputs()]
        self.outputs = tuple(known.get(name, TensorSpec(name, "", ())) for name in self._names)

    def _open(
        self, requests: Sequence[SessionRequest]
    ) -> tuple[SessionRequest, ort.InferenceSession, int]:
        """Create a session of the first provider that really runs the model."""
        hints = []
        for request in requests:
            try:
                return request, *create_session(request)
            except ProviderError as error:  # noqa: PERF203 - a list has few providers
                if len(requests) == 1:
                    raise
                self.rejected[request.provider] = error.message
                hints.append(error.hint)
        reasons = "; ".join(self.rejected.values())
        raise ProviderError(
            f"no provider of {', '.join(self.rejected)} can run {self.path.name}: {reasons}",
            hint=join_hints(hints),
        )

    @property
    def _session(self) -> ort.InferenceSession:
        with self._lock:
            if self._open_session is None:
                self._open_session, _ = create_session(self._request)
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
            session_options=self._request.session_options,
            expose=names,
        )

    def run(
        self, feeds: Mapping[str, Any], *, preprocess: Preprocess | None = None
    ) -> dict[str, NDArray[Any]]:
        """Compute every output from numpy arrays, or from tensors that support DLPack, uncopied.

        The first input, as an array, must have the range of images normalised by `preprocess`.
        """
        from_host = all(isinstance(x, np.ndarray) for x in feeds.values())
        if not self._records_graphs and not from_host:
            return {name: value.numpy() for name, value in self.run_on_device(feeds).items()}
        check_feeds(self.inputs, feeds, patch_size=self._patch_size, preprocess=preprocess)
        check_profile(self.profile, {name: x.shape for name, x in feeds.items()})
        with self._named_failures():
            if self._records_graphs:
                session = self._session
                with self._lock:
                    recorded = self._recorded or RecordedRuns(session, self._names, self._device)
                    self._recorded = recorded
                return recorded.run(feeds)
            # on a GPU too: ONNX Runtime copies on the run's stream and waits once, for that stream;
            # with an IOBinding it would wait three times, twice for all work on the device
            results = self._session.run(self._names, dict(feeds))
            return dict(zip(self._names, results, strict=True))

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
        values = {s.name: ort_value(s, feeds[s.name], self._device) for s in self.inputs}
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


def provider_names(
    provider: str | Sequence[str], options: GivenOptions | None, device: int | None
) -> list[str]:
    """Return the providers to try, best first; those of `"auto"` that this machine should have."""
    names = [provider] if isinstance(provider, str) else provider
    if (
        not isinstance(names, list | tuple)
        or not all(isinstance(name, str) for name in names)
        or not 0 < len(names) == len(set(names))
        or ("auto" in names and len(names) > 1)
    ):
        raise UsageError(
            f"provider={provider!r}: expected one provider, or a list of different ones without "
            "auto"
        )
    for name in names:
        check_provider(name)
    if names[0] == "auto" and isinstance(options, ProviderOptions):
        return [options.provider]
    if names[0] != "auto" or options is not None:  # `options_of` refuses raw options of "auto"
        return list(names)
    *candidates, last = AUTO
    if device is not None:  # a GPU was requested, and the CPU is none
        return candidates
    return [*filter(worth_trying, candidates), last]

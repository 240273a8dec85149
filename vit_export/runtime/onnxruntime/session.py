"""One ONNX Runtime session on exactly the provider that was asked for, or an error."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import onnxruntime as ort

from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.onnx_writer import stamp
from vit_export.artifact.publish import publish, staging
from vit_export.errors import ArtifactError, ProviderError, UsageError
from vit_export.runtime.onnxruntime.options import EngineOptions, ProviderOptions
from vit_export.runtime.onnxruntime.providers import (
    BACKEND_ERRORS,
    FATAL_ONLY,
    PLUGINS,
    PROVIDERS,
    cause,
    check_no_fallback,
    check_wheel_usable,
    first_line,
    quiet,
)
from vit_export.runtime.onnxruntime.rtx_plugin import rtx_devices
from vit_export.runtime.onnxruntime.tf32 import forbid_tf32

# ONNX Runtime 1.20 cannot be told where a model in memory has its weights
REFERS_TO_FOLDER = tuple(map(int, ort.__version__.split(".")[:2])) >= (1, 21)
MAPPED_FROM_BYTES = 1 << 28  # of weights, which the CPU then reads where they lie in the file


def create_session(
    file: OnnxFile,
    provider: str,
    options: ProviderOptions | None,
    *,
    exposed: Collection[str] = (),
    threads: int | None = None,
) -> ort.InferenceSession:
    """Create a session, and look at what it really runs on.

    Args:
        file: The model.
        provider: One of `PROVIDERS`.
        options: Of that provider; `None` for the CPU.
        exposed: Inner tensors to give as outputs as well.
        threads: CPU threads of one run; by default all cores.

    Raises:
        ArtifactError: The CPU cannot load the model.
        ProviderError: The provider does not start, or does not run every node.
        FallbackError: ONNX Runtime started another provider, without an error of its own.
        OutputError: A context file or a cache that was asked for cannot be written; nothing is
            left of a context whose session is refused.
        UsageError: The options do not fit the model.
    """
    forbid_tf32(provider, file.manifest.precision if file.manifest else "fp32")
    if provider != "cpu":
        check_wheel_usable(provider)
    if not isinstance(options, EngineOptions) or options.ep_context is None:
        return _strict_session(file, provider, options, exposed, threads)
    options.check_dump(file)
    path = Path(options.ep_context)
    with staging(path) as stage:
        dump = stage / path.name
        session = _strict_session(
            file, provider, replace(options, ep_context=dump), exposed, threads
        )
        finish_dump(dump, file, provider)
        publish([dump], path.parent)
    return session


def _strict_session(
    file: OnnxFile,
    provider: str,
    options: ProviderOptions | None,
    exposed: Collection[str],
    threads: int | None,
) -> ort.InferenceSession:
    try:
        with quiet(provider):
            session = _session(file, provider, options, exposed, threads)
    except BACKEND_ERRORS as error:
        if provider == "cpu":
            raise ArtifactError(
                f"{file.path}: ONNX Runtime {ort.__version__} cannot load it: {first_line(error)}"
            ) from error
        raise ProviderError(
            f"provider {provider!r} cannot run {file.path.name}: {first_line(error)}"
            f"{cause(provider)}; see: vit-export doctor"
        ) from error
    check_no_fallback(session, provider, file.path.name)
    return session


def _session(
    file: OnnxFile,
    provider: str,
    options: ProviderOptions | None,
    exposed: Collection[str],
    threads: int | None,
) -> ort.InferenceSession:
    entries = {"session.record_ep_graph_assignment_info": "1"}
    settings: dict[str, str] = {}
    if options is not None:
        settings = options.provider_options(file, ort.__version__)
        entries |= options.session_entries()
    model: str | bytes = str(file.path)
    mapped = provider == "cpu" and file.weights_bytes >= MAPPED_FROM_BYTES
    if (exposed or mapped or file.has_linked_weights) and REFERS_TO_FOLDER:
        folder = str(file.weights_folder)
        entries["session.model_external_initializers_file_folder_path"] = folder
        model = file.expose(exposed)
    elif exposed:
        model = file.expose(exposed, inline=True)
    session_options = ort.SessionOptions()
    session_options.log_severity_level = FATAL_ONLY
    for name, value in entries.items():
        session_options.add_session_config_entry(name, value)
    if threads is not None:
        session_options.intra_op_num_threads = threads
    if provider in PLUGINS:
        devices = rtx_devices()
        index = options.device_id if options else 0
        if index >= len(devices):
            raise UsageError(f"device_id={index}: the plugin finds {len(devices)} GPUs")
        session_options.add_provider_for_devices([devices[index]], settings)
        return ort.InferenceSession(model, session_options, enable_fallback=0)
    providers = [(PROVIDERS[provider], settings)]
    return ort.InferenceSession(model, session_options, providers=providers, enable_fallback=0)


def finish_dump(path: Path, file: OnnxFile, provider: str) -> None:
    """Give a dumped context file the manifest, so that it says how to prepare an image.

    Raises:
        ProviderError: The provider did not write it.
    """
    if not path.is_file():
        raise ProviderError(
            f"provider {provider!r} built its engine and did not write {path.name}, which was "
            "asked for with ep_context"
        )
    stamp(path, file.metadata)

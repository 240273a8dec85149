"""Create an ONNX Runtime session on exactly the requested provider, or raise an error."""

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path

import onnxruntime as ort

from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.onnx_writer import stamp
from vit_export.artifact.publish import publish, staging
from vit_export.errors import ArtifactError, ProviderError, UsageError
from vit_export.runtime.onnxruntime.options import EngineOptions, ProviderOptions, disable_tf32
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
    rtx_devices,
)

# ONNX Runtime 1.20 has no option for the folder in which a model in memory has its weights
HAS_WEIGHTS_FOLDER = tuple(map(int, ort.__version__.split(".")[:2])) >= (1, 21)
MAPPED_FROM_BYTES = 1 << 28  # size of weights from which the CPU reads them in the file


@dataclass(frozen=True, kw_only=True)
class SessionRequest:
    """What a session is created for; the arguments of `OrtRunner`, checked."""

    file: OnnxFile
    provider: str
    options: ProviderOptions | None = None
    exposed: tuple[str, ...] = ()
    threads: int | None = None


def create_session(request: SessionRequest) -> ort.InferenceSession:
    """Create a session, and check that the requested provider runs every node."""
    file, options = request.file, request.options
    disable_tf32(request.provider, file.manifest.precision if file.manifest else "fp32")
    if request.provider != "cpu":
        check_wheel_usable(request.provider)
    if not isinstance(options, EngineOptions) or options.ep_context is None:
        return _checked_session(request)
    path = Path(options.ep_context)
    options.check_context_file(file, path)
    with staging(path) as stage:
        staged = stage / path.name
        session = _checked_session(replace(request, options=replace(options, ep_context=staged)))
        if not staged.is_file():
            raise ProviderError(
                f"provider {request.provider!r} built its engine but did not write {path.name}, "
                "the file of ep_context"
            )
        stamp(staged, file.metadata)  # so that images can be prepared for it
        publish([staged], path.parent)
    return session


def _checked_session(request: SessionRequest) -> ort.InferenceSession:
    name, provider = request.file.path.name, request.provider
    try:
        with contextlib.nullcontext() if provider == "cpu" else quiet():
            session = _new_session(request)
    except BACKEND_ERRORS as error:
        if provider == "cpu":
            raise ArtifactError(
                f"{request.file.path}: ONNX Runtime {ort.__version__} cannot load it: "
                f"{first_line(error)}"
            ) from error
        raise ProviderError(
            f"provider {provider!r} cannot run {name}: {first_line(error)}{cause(provider)}",
            hint="vit-export doctor",
        ) from error
    check_no_fallback(session, provider, name)
    return session


def _new_session(request: SessionRequest) -> ort.InferenceSession:
    file, provider, options = request.file, request.provider, request.options
    session_options = ort.SessionOptions()
    session_options.log_severity_level = FATAL_ONLY
    if request.threads is not None:
        session_options.intra_op_num_threads = request.threads
    entries = {"session.record_ep_graph_assignment_info": "1"}
    model: str | bytes = str(file.path)
    mapped = provider == "cpu" and file.weights_bytes >= MAPPED_FROM_BYTES
    folder = file.weights_folder
    linked = folder != file.path.resolve().parent
    if (request.exposed or mapped or linked) and HAS_WEIGHTS_FOLDER:
        entries["session.model_external_initializers_file_folder_path"] = str(folder)
        model = file.expose(request.exposed)
    elif request.exposed:
        model = file.expose(request.exposed, inline=True)
    settings = options.provider_options(file, ort.__version__) if options else {}
    entries |= options.session_entries() if options else {}
    for name, value in entries.items():
        session_options.add_session_config_entry(name, value)
    if provider not in PLUGINS:
        providers = [(PROVIDERS[provider], settings)]
        return ort.InferenceSession(model, session_options, providers=providers, enable_fallback=0)
    devices = rtx_devices()
    index = options.device_id if options else 0
    if index >= len(devices):
        raise UsageError(f"device_id={index}: the plugin finds {len(devices)} GPUs")
    session_options.add_provider_for_devices([devices[index]], settings)
    return ort.InferenceSession(model, session_options, enable_fallback=0)

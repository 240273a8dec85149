"""Create an ONNX Runtime session on exactly the requested provider, or raise an error."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnxruntime as ort

from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.onnx_writer import stamp
from vit_export.artifact.publish import publish, staging
from vit_export.errors import ArtifactError, ProviderError, UsageError
from vit_export.runtime.onnxruntime.options import (
    EngineOptions,
    ProviderOptions,
    check_tf32,
    set_session_options,
)
from vit_export.runtime.onnxruntime.placement import check_placement
from vit_export.runtime.onnxruntime.provider_table import PROVIDERS
from vit_export.runtime.onnxruntime.providers import (
    BACKEND_ERRORS,
    cause,
    check_wheel_usable,
    first_line,
    plugin_devices,
    uses_plugin,
)

# ONNX Runtime 1.20 has no option for the folder in which a model in memory has its weights
HAS_WEIGHTS_FOLDER = tuple(map(int, ort.__version__.split(".")[:2])) >= (1, 21)
FATAL_ONLY = 4  # ONNX Runtime's logging severity
MAPPED_FROM_BYTES = 1 << 28  # size of weights from which the CPU reads them in the file


@dataclass(frozen=True, kw_only=True)
class SessionRequest:
    """What a session is created for; the arguments of `OrtRunner`, checked."""

    file: OnnxFile
    provider: str
    options: ProviderOptions
    exposed: tuple[str, ...] = ()
    threads: int | None = None
    session_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckedSession:
    """A session of the requested provider.

    Attributes:
        session: The session.
        on_cpu: Number of nodes, computations on shapes, that run on the CPU instead.
    """

    session: ort.InferenceSession
    on_cpu: int


def create_session(request: SessionRequest) -> CheckedSession:
    """Create a session, and check that the requested provider runs every node."""
    file, options = request.file, request.options
    if request.provider != "cpu":
        check_wheel_usable(request.provider)
    check_tf32(request.provider, file.manifest.precision if file.manifest else "fp32")
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


def _checked_session(request: SessionRequest) -> CheckedSession:
    name, provider = request.file.path.name, request.provider
    try:
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
    return CheckedSession(session, check_placement(session, provider, request.file))


def _new_session(request: SessionRequest) -> ort.InferenceSession:
    file, provider, options = request.file, request.provider, request.options
    session_options = ort.SessionOptions()
    session_options.log_severity_level = FATAL_ONLY
    if request.threads is not None:
        session_options.intra_op_num_threads = request.threads
    set_session_options(session_options, request.session_options)
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
    for name, value in (entries | options.session_entries()).items():
        session_options.add_session_config_entry(name, value)
    settings = options.provider_options(file, ort.__version__)
    if not uses_plugin(provider):
        providers = [(PROVIDERS[provider].ort_name, settings)]
        return ort.InferenceSession(model, session_options, providers=providers, enable_fallback=0)
    devices = plugin_devices(provider)
    if options.gpu >= len(devices):
        raise UsageError(f"device={options.gpu}: the plugin finds {len(devices)} devices")
    settings.pop("device_id", None)  # the device itself is given
    session_options.add_provider_for_devices([devices[options.gpu]], settings)
    return ort.InferenceSession(model, session_options, enable_fallback=0)

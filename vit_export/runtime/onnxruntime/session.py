"""Create an ONNX Runtime session on exactly the requested provider, or raise an error.

ONNX Runtime keeps small computations on shapes on the CPU on purpose: their results are needed
in host memory (`GetCpuPreferredNodes` in its fallback_cpu_capability.cc; issues 17930 and 13590).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from weakref import WeakSet

import onnxruntime as ort

from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.onnx_wire import MIN_EXTERNAL_BYTES
from vit_export.artifact.onnx_writer import stamp
from vit_export.artifact.publish import publish, staging
from vit_export.errors import ArtifactError, ProviderError, UsageError
from vit_export.runtime.onnxruntime.options import (
    PROVIDERS,
    EngineOptions,
    ProviderOptions,
    RawOptions,
    check_tf32,
    set_session_options,
)
from vit_export.runtime.onnxruntime.providers import (
    BACKEND_ERRORS,
    cause,
    check_wheel_usable,
    first_line,
    plugin_devices,
    uses_plugin,
)
from vit_export.runtime.onnxruntime.threads import default_threads

# ONNX Runtime 1.20 has no option for the folder in which a model in memory has its weights
HAS_WEIGHTS_FOLDER = tuple(map(int, ort.__version__.split(".")[:2])) >= (1, 21)
FATAL_ONLY = 4  # ONNX Runtime's logging severity
MAPPED_FROM_BYTES = 1 << 28  # size of weights from which the CPU reads them in the file
SHAPE_SOURCES = ("Shape", "Size", "Constant")
SHAPE_OPERATORS = {
    *("Abs", "Add", "BitShift", "Cast", "Ceil", "Clip", "CumSum", "Div", "Floor", "Max", "Min"),
    *("Mod", "Mul", "Neg", "Range", "Round", "Sqrt", "Sub"),
    *("ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum"),
    *("And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or"),
    *("Concat", "ConstantOfShape", "Expand", "Gather", "GatherElements", "Identity", "NonZero"),
    *("Reshape", "ScatterElements", "ScatterND", "Slice", "Split", "Squeeze", "Transpose"),
    *("Unsqueeze", "Where"),
}
SCALAR_BYTES = 8
_open: WeakSet[ort.InferenceSession] = WeakSet()  # the sessions of this process


@dataclass(frozen=True)
class SessionRequest:
    """What a session is created for; the arguments of `OrtRunner`, checked."""

    file: OnnxFile
    provider: str
    options: ProviderOptions
    exposed: tuple[str, ...] = ()
    session_options: Mapping[str, Any] = field(default_factory=dict)


def create_session(request: SessionRequest) -> tuple[ort.InferenceSession, int]:
    """Create a session of the requested provider; return how many nodes run on the CPU instead."""
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
        created = _checked_session(replace(request, options=replace(options, ep_context=staged)))
        if not staged.is_file():
            raise ProviderError(
                f"provider {request.provider!r} built its engine but did not write {path.name}, "
                "the file of ep_context"
            )
        stamp(staged, file.metadata)  # so that images can be prepared for it
        publish([staged], path.parent)
    return created


def _checked_session(request: SessionRequest) -> tuple[ort.InferenceSession, int]:
    name, provider = request.file.path.name, request.provider
    try:
        session = _new_session(request)
        _open.add(session)
    except BACKEND_ERRORS as error:
        if provider == "cpu":
            bf16 = any(tensor.dtype == "bfloat16" for tensor in request.file.initializers)
            raise ArtifactError(
                f"{request.file.path}: ONNX Runtime {ort.__version__} cannot load it: "
                f"{first_line(error)}",
                hint="ONNX Runtime's CPU provider has no kernels for bfloat16; run it on a GPU, "
                "e.g. with --provider cuda"
                if bf16
                else "",
            ) from error
        given, first = _raw_options(request.options)
        raise ProviderError(
            f"provider {provider!r}{given} cannot run {name}: {first_line(error)}{cause(provider)}",
            hint=f"{first}vit-export doctor",
        ) from error
    return session, check_placement(session, provider, request.file, request.options)


def _raw_options(options: ProviderOptions | None) -> tuple[str, str]:
    """Return how an error names raw options, and how its hint begins; empty without such."""
    if not isinstance(options, RawOptions) or not options.entries:
        return "", ""
    pairs = ", ".join(f"{name}={value}" for name, value in options.entries.items())
    return f" with options {pairs}", "check these options first; then: "


def _new_session(request: SessionRequest) -> ort.InferenceSession:
    file, provider, options = request.file, request.provider, request.options
    session_options = ort.SessionOptions()
    session_options.log_severity_level = FATAL_ONLY
    defaults = default_threads(others_open=bool(_open))
    set_session_options(session_options, {**defaults, **request.session_options})
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
    session_options.add_provider_for_devices([devices[options.gpu]], settings)
    return ort.InferenceSession(model, session_options, enable_fallback=0)


def check_placement(
    session: ort.InferenceSession,
    provider: str,
    file: OnnxFile,
    options: ProviderOptions | None = None,
) -> int:
    """Return how many nodes, computations on shapes, run on the CPU; refuse others there.

    Errors name raw `options`.
    """
    given, first = _raw_options(options)
    wanted = PROVIDERS[provider].ort_name
    if session.get_providers()[0] != wanted:
        raise ProviderError(
            f"provider {provider!r} was requested{given}, but ONNX Runtime fell back to "
            f"{session.get_providers()[0]}{cause(provider)}",
            hint=f"{first}`vit-export doctor` shows what is missing; --provider cpu runs on the "
            "CPU",
        )
    if provider == "cpu":
        return 0
    elsewhere = [
        (part.ep_name, node.name, node.op_type)
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != wanted
        for node in part.get_nodes()
    ]
    allowed = shape_nodes(file) if elsewhere else frozenset()
    heavy = [
        (where, f"{name} ({op_type})")
        for where, name, op_type in elsewhere
        if where != PROVIDERS["cpu"].ort_name
        or (op_type not in SHAPE_SOURCES and (name, op_type) not in allowed)
    ]
    if heavy:
        shown = ", ".join(node for _, node in heavy[:5]) + (", ..." if len(heavy) > 5 else "")
        places = " and ".join(dict.fromkeys(where for where, _ in heavy))
        raise ProviderError(
            f"{file.path.name}: ONNX Runtime placed {len(heavy)} of its nodes on {places} instead "
            f"of {provider!r}{given}: {shown}",
            hint=f"{first}export it again with another --opset or --attention, or use another "
            "--provider",
        )
    return len(elsewhere)


def shape_nodes(file: OnnxFile) -> frozenset[tuple[str, str]]:
    """Return (name, operator) of the nodes that compute from shapes and small constants alone."""
    known = {""} | {  # an optional input that is not given has the name ""
        tensor.name
        for tensor in file.initializers
        if 0 <= tensor.nbytes <= SCALAR_BYTES
        or (tensor.nbytes < MIN_EXTERNAL_BYTES and "int" in tensor.dtype)
    }
    on_shapes, others = set(), set()
    for node in file.nodes:  # ONNX: in the order of computation
        if node.op_type in SHAPE_SOURCES or (
            node.op_type in SHAPE_OPERATORS
            and node.domain in ("", "ai.onnx")
            and known.issuperset(node.inputs)
        ):
            known.update(node.outputs)
            on_shapes.add((node.name, node.op_type))
        else:
            others.add((node.name, node.op_type))
    return frozenset(on_shapes - others)  # not what another node is called too

"""Check which provider runs each node of a session.

ONNX Runtime keeps small computations on shapes on the CPU on purpose: their results are needed
in host memory (`GetCpuPreferredNodes` in its fallback_cpu_capability.cc; issues 17930 and 13590).
"""

import onnxruntime as ort

from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.onnx_wire import MIN_EXTERNAL_BYTES
from vit_export.errors import ProviderError
from vit_export.runtime.onnxruntime.provider_table import PROVIDERS
from vit_export.runtime.onnxruntime.providers import cause

SHAPE_SOURCES = ("Shape", "Size", "Constant")
SHAPE_OPERATORS = frozenset(
    {
        *("Abs", "Add", "BitShift", "Cast", "Ceil", "Clip", "CumSum", "Div", "Floor", "Max", "Min"),
        *("Mod", "Mul", "Neg", "Range", "Round", "Sqrt", "Sub"),
        *("ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum"),
        *("And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or"),
        *("Concat", "ConstantOfShape", "Expand", "Gather", "GatherElements", "Identity", "NonZero"),
        *("Reshape", "ScatterElements", "ScatterND", "Slice", "Split", "Squeeze", "Transpose"),
        *("Unsqueeze", "Where"),
    }
)
SCALAR_BYTES = 8


def check_placement(session: ort.InferenceSession, provider: str, file: OnnxFile) -> int:
    """Return how many nodes run on the CPU instead of the provider: computations on shapes only.

    Raises:
        ProviderError: ONNX Runtime fell back to another provider, for all or for other nodes.
    """
    wanted = PROVIDERS[provider].ort_name
    if session.get_providers()[0] != wanted:
        raise ProviderError(
            f"provider {provider!r} was requested, but ONNX Runtime fell back to "
            f"{session.get_providers()[0]}{cause(provider)}",
            hint="`vit-export doctor` shows what is missing; --provider cpu runs on the CPU",
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
            f"of {provider!r}: {shown}",
            hint="export it again with another --opset or --attention, or use another --provider",
        )
    return len(elsewhere)


def shape_nodes(file: OnnxFile) -> frozenset[tuple[str, str]]:
    """Return (name, operator) of the nodes that compute from shapes and small constants alone.

    Constants are integers or single numbers. A name that another node has too is left out.
    """
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
    return frozenset(on_shapes - others)

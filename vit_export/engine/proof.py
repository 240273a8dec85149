"""Evidence that an engine has the precision of its settings.

TensorRT 11 builds an FP32 engine where the old FP16 builder flag is set, with one warning and exit
status 0. So the types of the strongly typed network are counted before the build, and a wrong count
is an error. The size of the plan, and the types that TensorRT's inspector shows on a GPU, lead to
warnings only: what they look like has not been confirmed on a GPU yet.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from vit_export.artifact.engine_sidecar import Profile
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.engine.network import Network
from vit_export.engine.settings import EngineSettings
from vit_export.errors import EngineError
from vit_export.runtime.tensorrt.backend import Backend

COMPUTE_TYPES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16", "int8": "INT8"}
INSPECTOR_WORDS = {  # in the names of types, and of kernels
    "fp16": r"half|(?<!b)fp?16",
    "bf16": r"bf(p|loat)?16",
    "int8": r"(?<!u)int8|i8",
}
NOT_SHOWN = "N/A"  # how "N/A due to dynamic shapes" starts, TensorRT's words in place of a type
CODE_BYTES = 1 << 18  # limit of a product's kernels in a profile (TensorRT-RTX has 90 kB)
WEIGHT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1}
PRODUCTS = ("MATRIX_MULTIPLY", "CONVOLUTION", "ATTENTION_INPUT")
_PASSING_THROUGH = ("SHUFFLE", "SLICE", "CAST", "IDENTITY", "SQUEEZE", "UNSQUEEZE")


def product_types(network: Network) -> dict[str, int]:
    """Count the matrix products, convolutions and attentions by the type that they compute in.

    A product of two dequantized int8 operands counts as INT8: TensorRT fuses the DequantizeLinear
    of both into it.
    """
    outputs = (
        (layer, layer.get_output(index))
        for layer in network.layers
        for index in range(layer.num_outputs)
    )
    makers = {tensor.name: layer for layer, tensor in outputs if tensor is not None}
    types: Counter[str] = Counter()
    for layer in network.layers:
        if layer.type.name in PRODUCTS:
            operands = [layer.get_input(index) for index in range(min(2, layer.num_inputs))]
            quantized = [_from_int8(tensor, makers) for tensor in operands]
            types["INT8" if all(quantized) else operands[0].dtype.name] += 1
    return dict(types)


def _from_int8(tensor: Any, makers: Mapping[str, Any]) -> bool:
    """Return whether a tensor is a dequantized int8 tensor, perhaps in another shape."""
    while tensor is not None and tensor.name in makers:
        layer = makers[tensor.name]
        tensor = layer.get_input(0)
        if layer.type.name == "DEQUANTIZE":
            return bool(tensor.dtype.name == "INT8")
        if layer.type.name not in _PASSING_THROUGH:
            return False
    return False


def check_network(
    types: Mapping[str, int], precision: str, *, wide_allowed: int, narrow_at_least: int
) -> None:
    """Check the `product_types` of a network: how many are in float32, and in the precision."""
    wanted, wide = COMPUTE_TYPES[precision], types.get("FLOAT", 0)
    start = f"--precision {precision}, but the network's products are {_counts(types)}"
    if precision == "fp32":
        if set(types) != {"FLOAT"}:
            raise EngineError(start)
    elif types.get(wanted, 0) < narrow_at_least:
        raise EngineError(f"{start}: at least {narrow_at_least} must be {wanted}")
    elif precision != "int8" and wide > wide_allowed:
        raise EngineError(
            f"{start}: {wide} would compute in float32, and the conversion left {wide_allowed}"
        )


def weight_bytes(file: OnnxFile) -> tuple[int, int]:
    """Return the bytes of a file's weights, and of the same weights in float32."""
    sizes = [(t.dtype, max(t.nbytes, 0)) for t in file.initializers if t.dtype in WEIGHT_BYTES]
    return (
        sum(nbytes for _, nbytes in sizes),
        sum(4 * nbytes // WEIGHT_BYTES[dtype] for dtype, nbytes in sizes),
    )


def plan_size(
    plan_bytes: int, weights: tuple[int, int], settings: EngineSettings, *, kernels: int
) -> tuple[str, bool]:
    """Return what the size of a plan shows, and whether it fits the precision of the settings.

    A plan in float32 contains at least its weights in float32. `weights` are of `weight_bytes`.
    """
    precision, (stored, fp32) = settings.precision, weights
    code = CODE_BYTES * kernels
    if settings.strip:
        return "the plan contains no weights, so its size shows nothing", True
    if precision == "fp32":
        smaller = plan_bytes < stored
        relation = "smaller than" if smaller else "at least"
        return f"{plan_bytes} bytes, {relation} its weights in fp32 ({stored})", not smaller
    if settings.version_compatible:  # the runtime may be as large as the weights
        return f"{plan_bytes} bytes with a lean runtime in it, so its size shows nothing", True
    if plan_bytes > stored + code:
        return (
            f"{plan_bytes} bytes, larger than its weights in {precision} ({stored}) and {code} "
            f"bytes of code: it may be an fp32 engine (weights {fp32})"
        ), False
    if plan_bytes >= fp32:
        return f"{plan_bytes} bytes: mostly code, since the weights are few ({fp32} in fp32)", True
    return f"{plan_bytes} bytes, less than the weights alone in fp32 ({fp32})", True


def inspect_engine(backend: Backend, engine: Any, profiles: Sequence[Profile]) -> str:
    """Return the layers of an engine as TensorRT's inspector shows them, on this thread's GPU.

    Types that depend on shapes are shown for those of a context, here `opt` of the first profile.
    """
    from cuda.core import Device

    inspector, context = engine.create_engine_inspector(), engine.create_execution_context()
    if context is not None:
        stream = Device().create_stream()
        context.set_optimization_profile_async(0, int(stream.handle))
        stream.sync()
        for name, shapes in profiles[0].items() if profiles else ():
            context.set_input_shape(name, shapes.opt)
        inspector.execution_context = context
    return str(inspector.get_engine_information(backend.trt.LayerInformationFormat.JSON))


def shown_types(information: str) -> dict[str, dict[str, int]]:
    """Count the types of inputs, outputs and weights, and the kernels, in an inspector's JSON.

    Its form is documented in
    https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/engine-tools.html. What
    is not shown, or has another form, is not counted.
    """
    try:
        layers = list(json.loads(information, strict=False)["Layers"])
    except (ValueError, KeyError, TypeError):
        layers = []
    counts: dict[str, Counter[str]] = {}
    for layer in layers:
        if not isinstance(layer, dict):
            continue  # a name without details
        for kind, found, key in (
            ("inputs", layer.get("Inputs"), "Format/Datatype"),
            ("outputs", layer.get("Outputs"), "Format/Datatype"),
            ("weights", layer.get("Weights"), "Type"),
            ("tactics", layer, "TacticName"),
        ):
            entries = found if isinstance(found, list) else [found]
            texts = [str(entry.get(key) or "") for entry in entries if isinstance(entry, dict)]
            shown = [text for text in texts if text and not text.startswith(NOT_SHOWN)]
            counts.setdefault(kind, Counter()).update(shown)
    return {kind: dict(texts) for kind, texts in counts.items() if texts}


def inspector_warning(shown: Mapping[str, Mapping[str, int]], precision: str) -> str:
    """Return why `shown_types` do not confirm a precision; `""` where they do, and for fp32."""
    if precision == "fp32":
        return ""
    word = re.compile(INSPECTOR_WORDS[precision], re.IGNORECASE)
    if any(word.search(text) for texts in shown.values() for text in texts):
        return ""
    listed = "; ".join(f"{kind} {_counts(texts)}" for kind, texts in shown.items())
    return f"TensorRT's inspector shows no {precision} in the engine: {listed or 'no types at all'}"


def _counts(types: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(types.items())) or "none"

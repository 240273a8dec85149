"""Checks that an engine has the precision of its settings.

TensorRT 11 builds an FP32 engine where the old FP16 builder flag is set, with one warning and exit
status 0. So the types of the network are counted before the build, the size of the plan is checked
after it, and on a GPU TensorRT's inspector lists the types of the engine.
"""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.engine.network import Network
from vit_export.engine.settings import EngineSettings
from vit_export.errors import EngineError
from vit_export.runtime.tensorrt.backend import Backend

COMPUTE_TYPES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16", "int8": "INT8"}
INSPECTOR_WORDS = {"fp16": ("fp16", "half"), "bf16": ("bf16", "bfloat16"), "int8": ("int8",)}
CODE_BYTES = 1 << 18  # limit of the kernels of one product in one profile (measured: 90 kB)
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


def check_plan_size(
    plan_bytes: int, weights: tuple[int, int], settings: EngineSettings, *, kernels: int
) -> str:
    """Check the size of a plan, and return what it shows.

    A plan in float32 contains at least its weights in float32. `weights` are those of
    `weight_bytes`; each product has kernels of its own in each profile.
    """
    precision, (stored, fp32) = settings.precision, weights
    code = CODE_BYTES * kernels
    if settings.strip:
        return "the plan contains no weights, so its size shows nothing"
    if precision == "fp32":
        if plan_bytes < stored:
            raise EngineError(
                f"--precision fp32, but the plan ({plan_bytes} bytes) is smaller than its "
                f"weights in float32 ({stored} bytes)"
            )
        return f"{plan_bytes} bytes, weights {stored}"
    if settings.version_compatible:  # the runtime may be as large as the weights
        return f"{plan_bytes} bytes with a lean runtime in it, so its size shows nothing"
    if plan_bytes > stored + code:
        raise EngineError(
            f"--precision {precision}, but the plan ({plan_bytes} bytes) is larger than its "
            f"weights in {precision} ({stored} bytes) and {code} bytes of code: it may be an fp32 "
            f"engine (weights {fp32} bytes)"
        )
    if plan_bytes >= fp32:
        return f"{plan_bytes} bytes: mostly code, since the weights are few ({fp32} in fp32)"
    return f"{plan_bytes} bytes, less than the weights alone in fp32 ({fp32})"


def inspect_engine(backend: Backend, engine: Any, precision: str) -> dict[str, int]:
    """Check the precision of an engine; return how many outputs of its layers have each type.

    TensorRT's inspector needs a GPU, and an engine that was built with detailed verbosity. It
    returns JSON: `{"Layers": [{"Outputs": [{"Format/Datatype": ...}]}]}`.
    """
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(backend.trt.LayerInformationFormat.JSON)
    layers = [layer for layer in json.loads(text).get("Layers", ()) if isinstance(layer, dict)]
    outputs = [output for layer in layers for output in layer.get("Outputs", ())]
    types = Counter(str(o["Format/Datatype"]) for o in outputs if o.get("Format/Datatype"))
    if not types:
        raise EngineError(
            "TensorRT's inspector lists no types, so the engine's precision cannot be checked"
        )
    words = INSPECTOR_WORDS.get(precision)
    if words and not any(word in name.lower() for name in types for word in words):
        raise EngineError(
            f"--precision {precision}, but the engine's layers write {_counts(types)}"
        )
    return dict(types)


def _counts(types: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(types.items())) or "none"

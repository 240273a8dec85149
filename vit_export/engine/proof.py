"""Proof that an engine has the precision that was asked for.

An engine in FP32 where FP16 was asked is what TensorRT 11 makes of the old builder flag, with one
warning and exit status 0. So the types are counted before the build, in the network; the plan is
weighed after it; and where there is a GPU, TensorRT's inspector says what it will run.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from vit_export.engine.network import Network
from vit_export.engine.source import Weights
from vit_export.errors import EngineError
from vit_export.runtime.tensorrt.backend import Backend

COMPUTE_TYPES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16", "int8": "INT8"}
INSPECTOR_WORDS = {"fp16": ("fp16", "half"), "bf16": ("bf16", "bfloat16"), "int8": ("int8",)}
CODE_BYTES = 1 << 18  # what the kernels of one product may weigh, in one profile (measured: 90 kB)
PRODUCTS = ("MATRIX_MULTIPLY", "CONVOLUTION", "ATTENTION_INPUT")
_PASSING_THROUGH = ("SHUFFLE", "SLICE", "CAST", "IDENTITY", "SQUEEZE", "UNSQUEEZE")


def product_types(network: Network) -> dict[str, int]:
    """Number of products, convolutions and attentions by the type that they compute in.

    A product whose two operands come from int8 counts as INT8: TensorRT fuses the
    DequantizeLinear of both into it.
    """
    makers = {}
    for layer in network.layers:
        for index in range(layer.num_outputs):
            if layer.get_output(index) is not None:
                makers[layer.get_output(index).name] = layer
    found: Counter[str] = Counter()
    for layer in network.layers:
        if layer.type.name in PRODUCTS:
            operands = [layer.get_input(index) for index in range(min(2, layer.num_inputs))]
            quantized = [_from_int8(tensor, makers) for tensor in operands]
            found["INT8" if all(quantized) else operands[0].dtype.name] += 1
    return dict(found)


def _from_int8(tensor: Any, makers: Mapping[str, Any]) -> bool:
    """Whether a tensor is a dequantized int8 one, perhaps in another shape."""
    while tensor is not None and tensor.name in makers:
        layer = makers[tensor.name]
        if layer.type.name == "DEQUANTIZE":
            return bool(layer.get_input(0).dtype.name == "INT8")
        if layer.type.name not in _PASSING_THROUGH:
            return False
        tensor = layer.get_input(0)
    return False


def prove_network(
    types: Mapping[str, int], precision: str, *, wide_allowed: int, narrow_at_least: int
) -> None:
    """Refuse a network of another precision, before the build.

    Args:
        types: What `product_types` counted.
        precision: What was asked for.
        wide_allowed: How many products may stay in float32.
        narrow_at_least: How many must be in the precision asked for.

    Raises:
        EngineError: Naming what was counted.
    """
    wanted = COMPUTE_TYPES[precision]
    counted = ", ".join(f"{count} {name}" for name, count in sorted(types.items())) or "none"
    wide = types.get("FLOAT", 0)
    if precision == "fp32":
        if set(types) != {"FLOAT"}:
            raise EngineError(f"fp32 was asked for, but the network's products are {counted}")
        return
    if types.get(wanted, 0) < max(narrow_at_least, 1):
        raise EngineError(
            f"{precision} was asked for, but the network's products are {counted}: at least "
            f"{max(narrow_at_least, 1)} must be {wanted}"
        )
    if precision != "int8" and wide > wide_allowed:
        raise EngineError(
            f"{precision} was asked for, but {wide} of the network's products would compute in "
            f"float32 ({counted}), where the conversion kept {wide_allowed}"
        )


def prove_plan(
    plan_bytes: int,
    weights: Weights,
    precision: str,
    *,
    products: int,
    profiles: int,
    stripped: bool,
    lean_runtime: bool,
) -> str:
    """Weigh a plan: one in float32 holds at least its weights in float32.

    Args:
        plan_bytes: Size of the plan.
        weights: Those of the graph.
        precision: What was asked for.
        products: Number of products in the network.
        profiles: Number of optimization profiles, each with kernels of its own.
        stripped: Whether the plan goes without its weights.
        lean_runtime: Whether it holds the runtime of a version compatible plan, which weighs as
            much as the weights of many a model.

    Returns:
        What the size shows.

    Raises:
        EngineError: It is too large for the precision asked for.
    """
    if stripped:
        return "the plan holds no weights, so its size shows nothing"
    code = CODE_BYTES * products * max(profiles, 1)
    fp32 = weights.as_fp32_bytes
    if precision == "fp32":
        if plan_bytes < weights.stored_bytes:
            raise EngineError(
                f"fp32 was asked for, but the plan ({plan_bytes} bytes) is smaller than its "
                f"weights in float32 ({weights.stored_bytes} bytes)"
            )
        return f"{plan_bytes} bytes, weights {weights.stored_bytes}"
    if lean_runtime:
        return f"{plan_bytes} bytes with a lean runtime in it, so its size shows nothing"
    if plan_bytes > weights.stored_bytes + code:
        raise EngineError(
            f"{precision} was asked for, but the plan ({plan_bytes} bytes) is larger than its "
            f"weights in {precision} ({weights.stored_bytes} bytes) and {code} bytes of code: "
            f"it may be an fp32 engine (weights {fp32} bytes)"
        )
    if plan_bytes >= fp32:
        return f"{plan_bytes} bytes: beside so few weights ({fp32} in fp32) code decides"
    return f"{plan_bytes} bytes, less than the weights alone in fp32 ({fp32})"


def inspector_types(text: str) -> dict[str, int]:
    """Number of tensors that layers write, by the words of TensorRT's inspector.

    Args:
        text: JSON of `IEngineInspector.get_engine_information`, of a build with detailed
            verbosity: `{"Layers": [{"Outputs": [{"Format/Datatype": ...}]}]}`.

    Raises:
        EngineError: It holds no types.
    """
    found: Counter[str] = Counter()
    for layer in json.loads(text).get("Layers", ()):
        outputs = layer.get("Outputs", ()) if isinstance(layer, dict) else ()
        found.update(str(output.get("Format/Datatype", "")) for output in outputs)
    found.pop("", None)
    if not found:
        raise EngineError(
            "TensorRT's inspector names no types, so nothing shows what the engine computes in"
        )
    return dict(found)


def prove_engine(types: Mapping[str, int], precision: str) -> None:
    """Refuse an engine in which no layer writes the precision asked for.

    Raises:
        EngineError: Naming what the inspector counted.
    """
    words = INSPECTOR_WORDS.get(precision, ())
    narrow = sum(n for name, n in types.items() if any(word in name.lower() for word in words))
    if words and not narrow:
        counted = ", ".join(f"{count} {name}" for name, count in sorted(types.items()))
        raise EngineError(f"{precision} was asked for, but the engine's layers write {counted}")


def inspect_engine(backend: Backend, engine: Any) -> dict[str, int]:
    """Ask TensorRT's inspector what a deserialized engine computes in; needs a GPU."""
    inspector = engine.create_engine_inspector()
    information = backend.trt.LayerInformationFormat.JSON
    return inspector_types(str(inspector.get_engine_information(information)))

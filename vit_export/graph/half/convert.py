"""Convert an fp32 graph to strongly typed mixed FP16 or BF16.

TensorRT 11 has no switch for half precision, and TensorRT 10's gave wrong results for Vision
Transformers (NVIDIA/TensorRT#2709), so the types in the graph decide what runs. The default
recipe, `"mixed"`, keeps in float32 what half precision is bad at: the residual stream, its
additions, and the statistics of LayerNormalization. Products, attention, softmax and GELU are
narrow, and their weights take half the bytes. Inputs and outputs stay float32 by default.

No weight is clamped, as onnxconverter-common does (to 1e4 and 1e-7). A weight with a value beyond
the largest of the type stays in float32 and is reported; values that become zero are counted.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vit_export.artifact.manifest import Conversion, Kept
from vit_export.graph.builder import (
    add_constant,
    constant_of,
    insert_cast,
    lazy_tensor,
    remove_unread_constants,
)
from vit_export.graph.half.plan import RECIPES, Plan, Width, is_float, plan_widths
from vit_export.graph.io import open_fp32_graph, open_graph, save_graph
from vit_export.graph.layers import layer_of, weight_of


@dataclass(frozen=True, kw_only=True)
class Half:
    """A floating-point type of 16 bits."""

    dtype: ir.DataType
    largest: float  # finite value
    wide_ops: frozenset[str] = frozenset()  # operators that stay in float32

    def round(self, values: NDArray[np.float32]) -> NDArray[np.generic]:
        """Round values to this type, half to even; larger ones become infinite."""
        with np.errstate(over="ignore"):
            return values.astype(self.dtype.numpy())


HALVES = {
    "fp16": Half(dtype=ir.DataType.FLOAT16, largest=65504.0),
    # ONNX has no bfloat16 Conv before opset 22, and ONNX Runtime has no kernel for one
    "bf16": Half(
        dtype=ir.DataType.BFLOAT16,
        largest=3.3895313892515355e38,
        wide_ops=frozenset({"Conv"}),
    ),
}


def to_half(
    source: Path,
    destination: Path,
    *,
    precision: str = "fp16",
    recipe: str = "mixed",
    keep: Collection[str] = (),
    half_io: bool = False,
) -> Conversion:
    """Convert an fp32 artifact.

    Args:
        source: An .onnx file in float32.
        destination: File to write; its weights go to `destination` + `.data`.
        precision: `"fp16"` or `"bf16"`.
        recipe: `"mixed"`, or `"all"` to narrow the residual stream and the norms as well.
        keep: Layers that stay in float32, e.g. `"blocks.3.mlp.fc2"`.
        half_io: Whether inputs and outputs are narrow too.

    Returns:
        Counts of converted nodes; `kept` holds the layers whose weights overflow.

    Raises:
        ArtifactError: The source is damaged, or is not float32.
    """
    half, model = HALVES[precision], open_fp32_graph(source)
    losses = _weight_losses(model.graph, half)
    plan = plan_widths(
        model.graph,
        recipe=recipe,
        wide_ops=half.wide_ops,
        keep=keep,
        too_large={name for name, loss in losses.items() if loss.overflow},
    )
    weighted = (node for node in model.graph if weight_of(node) is not None)
    planned = [node for node in weighted if node.op_type not in half.wide_ops]
    converted = _narrow_weights(plan)
    conversion = Conversion(
        recipe=recipe,
        planned=len(planned),
        narrowed=sum(plan[node] == "narrow" for node in planned),
        kept=tuple(_overflowing(model.graph, losses, half)),
        notes=tuple(_notes({n: loss for n, loss in losses.items() if n in converted}, half)),
    )
    _apply_plan(model.graph, plan, half, half_io=half_io)
    save_graph(model, destination)
    return conversion


def layers_to_narrow(source: Path, *, precision: str, recipe: str) -> list[str]:
    """Return the layers that `to_half` narrows, in the order of the graph."""
    graph = open_graph(source).graph
    plan = plan_widths(graph, recipe=recipe, wide_ops=HALVES[precision].wide_ops)
    narrow = (node for node in graph if plan.get(node) == "narrow")
    return list(dict.fromkeys(layer_of(n) for n in narrow if n.op_type in RECIPES[recipe]))


def residual_tensors(source: Path) -> list[str]:
    """Return the tensors of the residual stream: the sums of two computed tensors."""
    graph = open_graph(source).graph
    plan = plan_widths(graph, recipe="mixed")
    return [
        node.outputs[0].name or ""
        for node in graph
        if node.op_type == "Add" and plan.get(node) == "wide"
    ]


class _WeightLoss(NamedTuple):
    """What a conversion loses of one weight, in numbers of values."""

    size: int
    overflow: int  # finite values that become infinite
    flushed: int  # values other than 0 that become 0


def _weight_losses(graph: ir.Graph, half: Half) -> dict[str, _WeightLoss]:
    """Return the losses of every float32 weight by name; one weight at a time is read."""
    losses = {}
    for name, value in graph.initializers.items():
        if value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT:
            values = value.const_value.numpy()
            rounded = half.round(values)
            overflow = np.isfinite(values) & ~np.isfinite(rounded.astype(np.float32))
            flushed = (values != 0) & (rounded == 0)
            losses[name] = _WeightLoss(values.size, int(overflow.sum()), int(flushed.sum()))
    return losses


def _overflowing(graph: ir.Graph, losses: dict[str, _WeightLoss], half: Half) -> list[Kept]:
    kept = []
    for name, loss in losses.items():
        if loss.overflow:
            readers = graph.initializers[name].consumers()
            reason = (
                f"{loss.overflow} of {loss.size} values of {name} exceed {half.largest:g}, the "
                f"largest {half.dtype.numpy()}"
            )
            kept.append(Kept(layer_of(readers[0]) if readers else name, "fp32", reason))
    return kept


def _notes(losses: dict[str, _WeightLoss], half: Half) -> list[str]:
    flushed = sum(loss.flushed for loss in losses.values())
    if not flushed:
        return []
    worst, loss = max(losses.items(), key=lambda item: item[1].flushed)
    return [
        f"{flushed} of {sum(loss.size for loss in losses.values())} weights became 0 in "
        f"{half.dtype.numpy()}, {loss.flushed} of them in {worst}"
    ]


def _narrow_weights(plan: Plan) -> set[str]:
    """Return the names of the weights that narrow nodes read."""
    return {
        value.name or ""
        for node, width in plan.items()
        for value in node.inputs
        if width == "narrow" and value is not None and is_float(value) and value.is_initializer()
    }


def _apply_plan(graph: ir.Graph, plan: Plan, half: Half, *, half_io: bool) -> None:
    """Convert a float32 graph as planned, in place.

    A weight that nodes of both precisions read is stored twice. All readers of a tensor share one
    Cast. Graph outputs, and every tensor that a node computes, keep their names.
    """
    io_width: Width = "narrow" if half_io else "wide"
    dtypes = {"narrow": half.dtype, "wide": ir.DataType.FLOAT}
    widths = _widths(graph, plan, io_width)
    converted: dict[tuple[ir.Value, Width], ir.Value] = {}

    def in_width(value: ir.Value, width: Width) -> ir.Value:
        if (value, width) not in converted:
            name, dtype = f"{value.name}/{dtypes[width].numpy()}", dtypes[width]
            if value.is_initializer():
                tensor = constant_of(value)
                shape, compute = tensor.shape.numpy(), lambda: half.round(tensor.numpy())
                new = add_constant(graph, lazy_tensor(name, dtype, shape, compute))
            else:
                new = insert_cast(graph, value, dtype, name)
            converted[value, width] = new
        return converted[value, width]

    for node, width in plan.items():
        for i, value in enumerate(node.inputs):
            if value is not None and is_float(value) and widths[value] != width:
                node.replace_input_with(i, in_width(value, width))
    for value, width in widths.items():
        if not value.is_initializer():
            value.type = ir.TensorType(dtypes[width])
    for i, value in enumerate(graph.outputs):
        width = widths.get(value, io_width)
        if width != io_width and not value.is_initializer():
            name = value.name or ""
            value.name = f"{name}/{dtypes[width].numpy()}"
            graph.outputs[i] = insert_cast(graph, value, dtypes[io_width], name)
    remove_unread_constants(graph)


def _widths(graph: ir.Graph, plan: Plan, io_width: Width) -> dict[ir.Value, Width]:
    """Return the width of every float value before casts are inserted; weights are wide."""
    widths: dict[ir.Value, Width] = dict.fromkeys(graph.initializers.values(), "wide")
    widths |= {value: io_width for value in graph.inputs if is_float(value)}
    for node, width in plan.items():
        widths |= {value: width for value in node.outputs if is_float(value)}
    return widths

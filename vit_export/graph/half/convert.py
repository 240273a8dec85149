"""Convert an fp32 graph to strongly typed mixed FP16 or BF16.

TensorRT 11 has no switch for half precision, and TensorRT 10's gave wrong results for Vision
Transformers (NVIDIA/TensorRT#2709), so the types in the graph decide what runs. The default
recipe, `"mixed"`, keeps in float32 what half precision is bad at: the residual stream, its
additions, and the statistics of LayerNormalization. Products, attention, softmax and GELU are
narrow, and their weights take half the bytes. Inputs and outputs stay float32 by default.

No weight is clamped, as onnxconverter-common does (to 1e4 and 1e-7). A weight with a value beyond
the largest of the type stays in float32 and is reported; values that become zero are counted.
"""

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
    """Convert an fp32 artifact, except for the layers to keep, e.g. `"blocks.3.mlp.fc2"`.

    With `half_io` the inputs and outputs are narrow too. `kept` of the result holds the layers
    whose weights overflow.
    """
    half, model = HALVES[precision], open_fp32_graph(source)
    graph = model.graph
    losses = _weight_losses(graph, half)
    overflowing = [name for name, loss in losses.items() if loss.overflow]
    plan = plan_widths(
        graph, recipe=recipe, wide_ops=half.wide_ops, keep=keep, too_large=overflowing
    )
    weighted = (node for node in plan if weight_of(node) is not None)
    planned = [node for node in weighted if node.op_type not in half.wide_ops]
    conversion = Conversion(
        recipe=recipe,
        planned=len(planned),
        narrowed=sum(plan[node] == "narrow" for node in planned),
        kept=tuple(_kept(graph.initializers[name], losses[name], half) for name in overflowing),
        notes=_notes(plan, losses, half),
    )
    _apply_plan(graph, plan, half, half_io=half_io)
    save_graph(model, destination)
    return conversion


def layers_to_narrow(source: Path, *, precision: str, recipe: str) -> list[str]:
    """Return the layers that `to_half` narrows, in the order of the graph."""
    graph = open_graph(source).graph
    plan = plan_widths(graph, recipe=recipe, wide_ops=HALVES[precision].wide_ops)
    narrow = (node for node, width in plan.items() if width == "narrow")
    return list(dict.fromkeys(layer_of(n) for n in narrow if n.op_type in RECIPES[recipe]))


def residual_tensors(source: Path) -> list[str]:
    """Return the tensors of the residual stream: the sums of two computed tensors."""
    plan = plan_widths(open_graph(source).graph, recipe="mixed")
    sums = (node for node, width in plan.items() if node.op_type == "Add" and width == "wide")
    return [node.outputs[0].name or "" for node in sums]


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


def _kept(weight: ir.Value, loss: _WeightLoss, half: Half) -> Kept:
    """Return why the layer of a weight that overflows stays float32."""
    readers, name = weight.consumers(), weight.name or ""
    reason = (
        f"{loss.overflow} of {loss.size} values of {name} exceed {half.largest:g}, the largest "
        f"{half.dtype.numpy()}"
    )
    return Kept(layer_of(readers[0]) if readers else name, "fp32", reason)


def _notes(plan: Plan, losses: dict[str, _WeightLoss], half: Half) -> tuple[str, ...]:
    """Return how many values become 0 of the weights that narrow nodes read."""
    narrow = (value for node, width in plan.items() if width == "narrow" for value in node.inputs)
    read = {value.name for value in narrow if value is not None}
    converted = {name: loss for name, loss in losses.items() if name in read}
    flushed = sum(loss.flushed for loss in converted.values())
    if not flushed:
        return ()
    worst, loss = max(converted.items(), key=lambda item: item[1].flushed)
    return (
        f"{flushed} of {sum(loss.size for loss in converted.values())} weights became 0 in "
        f"{half.dtype.numpy()}, {loss.flushed} of them in {worst}",
    )


def _apply_plan(graph: ir.Graph, plan: Plan, half: Half, *, half_io: bool) -> None:
    """Convert a float32 graph as planned, in place.

    A weight that nodes of both precisions read is stored twice. All readers of a tensor share one
    Cast. Graph outputs, and every tensor that a node computes, keep their names.
    """
    io_width: Width = "narrow" if half_io else "wide"
    dtypes = {"narrow": half.dtype, "wide": ir.DataType.FLOAT}
    # of every float value before casts are inserted; weights are wide
    widths: dict[ir.Value, Width] = dict.fromkeys(graph.initializers.values(), "wide")
    widths |= {value: io_width for value in graph.inputs if is_float(value)}
    for node, width in plan.items():
        widths |= {value: width for value in node.outputs if is_float(value)}
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
            if is_float(value) and widths[value] != width:
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

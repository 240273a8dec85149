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
from pathlib import Path

import onnx_ir as ir

from vit_export.artifact.manifest import Conversion, Kept
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.graph.half.casts import apply_plan, narrow_weights
from vit_export.graph.half.plan import RECIPES, plan_widths
from vit_export.graph.half.types import HALVES, Half, WeightLoss, weight_losses
from vit_export.graph.io import open_fp32_graph, open_graph, save_graph
from vit_export.graph.layers import WEIGHTED_OPS, layer_of, weight_of


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
    losses = weight_losses(model.graph, half)
    plan = plan_widths(
        model.graph,
        recipe=recipe,
        wide_ops=half.wide_ops,
        keep=keep,
        too_large={name for name, loss in losses.items() if loss.overflow},
    )
    weighted = (node for node in model.graph if weight_of(node) is not None)
    planned = [node for node in weighted if node.op_type not in half.wide_ops]
    converted = narrow_weights(plan)
    conversion = Conversion(
        recipe=recipe,
        planned=len(planned),
        narrowed=sum(plan[node] == "narrow" for node in planned),
        kept=tuple(_overflowing(model.graph, losses, half)),
        notes=tuple(_notes({n: loss for n, loss in losses.items() if n in converted}, half)),
    )
    apply_plan(model.graph, plan, half, half_io=half_io)
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


def narrow_nodes(file: OnnxFile) -> int:
    """Return the number of products and convolutions with an FP16 or BF16 weight in a file."""
    halves = {t.name for t in file.initializers if t.dtype in ("float16", "bfloat16")}
    return sum(node.op_type in WEIGHTED_OPS and node.inputs[1] in halves for node in file.nodes)


def _overflowing(graph: ir.Graph, losses: dict[str, WeightLoss], half: Half) -> list[Kept]:
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


def _notes(losses: dict[str, WeightLoss], half: Half) -> list[str]:
    flushed = sum(loss.flushed for loss in losses.values())
    if not flushed:
        return []
    worst, loss = max(losses.items(), key=lambda item: item[1].flushed)
    return [
        f"{flushed} of {sum(loss.size for loss in losses.values())} weights became 0 in "
        f"{half.dtype.numpy()}, {loss.flushed} of them in {worst}"
    ]

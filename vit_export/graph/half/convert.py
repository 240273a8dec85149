"""ONNX to strongly typed mixed FP16 or BF16 ONNX.

TensorRT 11 has no switch for half precision, and TensorRT 10's gave wrong results for Vision
Transformers (NVIDIA/TensorRT#2709): the types that stand in the graph are what runs. The default
recipe, `"mixed"`, keeps what half precision is bad at in float32: the residual stream, its
additions, and the statistics of LayerNormalization. Products, attention, softmax and GELU are
narrow, and their weights take half the bytes. Inputs and outputs stay float32 unless asked for.

No weight is clamped: what holds a value beyond the largest of the type stays in float32 and is
reported, and values that flush to zero are counted. (onnxconverter-common clamps to 1e4 and 1e-7.)
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import onnx_ir as ir

from vit_export.artifact.manifest import Conversion, Kept
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.errors import ArtifactError, UsageError, nearest
from vit_export.graph.half.casts import apply, narrow_ports
from vit_export.graph.half.plan import RECIPES, plan_types
from vit_export.graph.half.types import HALVES, Half, WeightLoss, weight_losses
from vit_export.graph.io import open_graph, save_graph
from vit_export.graph.layers import layer_of, weight_of

NOT_FLOAT32 = frozenset({"float16", "bfloat16", "int8", "uint8", "int4", "uint4"})


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
        What was done; `kept` holds the layers whose weights do not fit the type.

    Raises:
        ArtifactError: The source is damaged, or is not float32.
        UsageError: No such precision or recipe.
    """
    if precision not in HALVES:
        raise UsageError(f"unknown half precision {precision!r}{nearest(precision, HALVES)}")
    if recipe not in RECIPES:
        raise UsageError(f"unknown recipe {recipe!r}{nearest(recipe, RECIPES)}")
    check_fp32_source(OnnxFile.read(source))
    half = HALVES[precision]
    model = open_graph(source)
    losses = weight_losses(model.graph, half)
    plan = plan_types(
        model.graph,
        recipe=RECIPES[recipe],
        wide_ops=half.wide_ops,
        keep=keep,
        too_large={name for name, loss in losses.items() if loss.overflow},
    )
    planned = [node for node in model.graph if _is_planned(node, half)]
    narrowed = [node for node in planned if plan[node] == "narrow"]
    converted = narrow_ports(model.graph, plan)
    apply(model.graph, plan, half, half_io=half_io)
    save_graph(model, destination)
    return Conversion(
        recipe=recipe,
        planned=len(planned),
        narrowed=len(narrowed),
        kept=tuple(_overflowing(model.graph, losses, half)),
        notes=tuple(_notes({name: losses[name] for name in converted if name in losses}, half)),
    )


def layers_to_narrow(source: Path, *, precision: str, recipe: str) -> list[str]:
    """Layers that `to_half` narrows, in the order of the graph; each may be named in `keep`."""
    graph, half = open_graph(source).graph, HALVES[precision]
    plan = plan_types(graph, recipe=RECIPES[recipe], wide_ops=half.wide_ops)
    chosen = (node for node in graph if plan.get(node) == "narrow")
    return list(dict.fromkeys(layer_of(n) for n in chosen if n.op_type in RECIPES[recipe]))


def residual_tensors(source: Path) -> list[str]:
    """Tensors of the residual stream: what leaves the additions of two computed tensors."""
    graph = open_graph(source).graph
    plan = plan_types(graph, recipe=RECIPES["mixed"])
    return [
        node.outputs[0].name or ""
        for node in graph
        if node.op_type == "Add" and plan.get(node) == "wide"
    ]


def check_fp32_source(file: OnnxFile) -> None:
    """Raise ArtifactError unless a file holds float32 weights only."""
    found = sorted({tensor.dtype for tensor in file.initializers} & NOT_FLOAT32)
    if found:
        raise ArtifactError(
            f"{file.path}: holds {', '.join(found)} weights, so it was converted already; "
            "convert the fp32 artifact instead"
        )


def narrow_nodes(file: OnnxFile) -> int:
    """Number of products and convolutions in a file whose weight is FP16 or BF16."""
    halves = {t.name for t in file.initializers if t.dtype in ("float16", "bfloat16")}
    return sum(
        node.op_type in ("Conv", "Gemm", "MatMul") and node.inputs[1] in halves
        for node in file.nodes
    )


def _is_planned(node: ir.Node, half: Half) -> bool:
    return weight_of(node) is not None and node.op_type not in half.wide_ops


def _overflowing(graph: ir.Graph, losses: dict[str, WeightLoss], half: Half) -> list[Kept]:
    kept = []
    for name, loss in losses.items():
        if loss.overflow:
            uses = graph.initializers[name].consumers()
            layer = layer_of(uses[0]) if uses else name
            kept.append(
                Kept(
                    layer=layer,
                    precision="fp32",
                    reason=f"{loss.overflow} of {loss.size} values of {name} lie beyond "
                    f"{half.largest:g}, the largest of {half.dtype_name}",
                )
            )
    return kept


def _notes(losses: dict[str, WeightLoss], half: Half) -> list[str]:
    flushed = sum(loss.flushed for loss in losses.values())
    if not flushed:
        return []
    total = sum(loss.size for loss in losses.values())
    worst = max(losses, key=lambda name: losses[name].flushed)
    return [
        f"{flushed} of {total} weights became 0 in {half.dtype_name}, "
        f"{losses[worst].flushed} of them in {worst}"
    ]

"""Choose the nodes that become INT8: products with a constant matrix; and convert their weights."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from vit_export.artifact.manifest import Conversion
from vit_export.errors import ArtifactError, UsageError, nearest
from vit_export.graph.builder import (
    UniqueNames,
    add_constant,
    add_lazy_constant,
    constant_of,
    remove_unread_constants,
)
from vit_export.graph.int8.weights import Float32, Int8, channel_scales, to_int8
from vit_export.graph.io import open_fp32_graph, save_graph
from vit_export.graph.layers import layer_of, weight_of


@dataclass(frozen=True)
class Plan:
    """A float32 graph, and the nodes of it that become INT8.

    Attributes:
        model: The graph.
        planned: MatMul and Gemm nodes with a constant matrix.
        narrowed: The planned nodes that are not kept in float32.
    """

    model: ir.Model
    planned: tuple[ir.Node, ...]
    narrowed: tuple[ir.Node, ...]

    def write(self, path: Path, *, recipe: str) -> Conversion:
        """Write the graph after the narrowed nodes were replaced, and return their count."""
        remove_unread_constants(self.model.graph)
        save_graph(self.model, path)
        return Conversion(recipe=recipe, planned=len(self.planned), narrowed=len(self.narrowed))


def plan(source: Path, keep: Collection[str] = ()) -> Plan:
    """Open an artifact and choose the nodes.

    Args:
        source: An .onnx file in float32.
        keep: Layers that stay in float32, e.g. `"blocks.3.mlp.fc2"`.

    Raises:
        ArtifactError: The source is damaged, is not float32, or has no product to convert.
        UsageError: A layer to keep is not among the planned ones.
    """
    model = open_fp32_graph(source)
    planned = tuple(node for node in model.graph if is_planned(node))
    if not planned:
        raise ArtifactError(
            f"{source}: has no MatMul or Gemm with a constant float32 matrix, so nothing in it "
            "can be INT8",
            hint="convert it to fp16",
        )
    layers = {layer_of(node) for node in planned}
    for layer in keep:
        if layer not in layers:
            raise UsageError(
                f"cannot keep {layer!r} in fp32: {source.name} has no such layer among the "
                f"{len(layers)} that INT8 converts{nearest(layer, sorted(layers))}"
            )
    return Plan(model, planned, tuple(n for n in planned if layer_of(n) not in set(keep)))


def is_planned(node: ir.Node) -> bool:
    """Whether a node is a plain product `x @ W` (+ bias) with a constant float32 matrix."""
    weight = weight_of(node)
    if node.op_type not in ("MatMul", "Gemm") or weight is None or weight.const_value is None:
        return False
    if len(weight.const_value.shape) != 2 or weight.const_value.dtype != ir.DataType.FLOAT:
        return False
    return node.op_type == "MatMul" or (
        not node.attributes.get_int("transA", 0)
        and node.attributes.get_float("alpha", 1.0) == 1.0
        and node.attributes.get_float("beta", 1.0) == 1.0
    )


def planned_tensors(source: Path) -> list[str]:
    """Return the tensors that the products of `plan` read, each once: the ones to calibrate."""
    return list(dict.fromkeys(input_of(node).name or "" for node in plan(source).planned))


def planned_layers(source: Path) -> list[str]:
    """Return the layers of the products of `plan`, each once."""
    return list(dict.fromkeys(layer_of(node) for node in plan(source).planned))


def input_of(node: ir.Node) -> ir.Value:
    """Return the tensor that a product multiplies with its weight."""
    value = node.inputs[0]
    if value is None:
        raise ValueError(f"{node.name} has no input")
    return value


def is_transposed(node: ir.Node) -> bool:
    """Whether the weight is stored as (N, K)."""
    return bool(node.attributes.get_int("transB", 0))


class Int8Weights:
    """INT8 weights of a graph and their scales; nodes that share a weight share its INT8 form.

    The values are computed when the file is written, one weight at a time.
    """

    def __init__(self, graph: ir.Graph, names: UniqueNames) -> None:
        self._graph, self._names = graph, names
        self._converted: dict[tuple[str, bool, bool], tuple[ir.Value, ir.Value]] = {}

    def of(self, node: ir.Node, *, as_columns: bool) -> tuple[ir.Value, ir.Value]:
        """Return the INT8 weight of a planned node, and its scales float32 (N,).

        Args:
            node: A planned node.
            as_columns: Whether to store the weight as (K, N); by default as it was stored.

        Raises:
            ArtifactError: A weight is not finite.
        """
        weight, transposed = weight_of(node), is_transposed(node)
        name, tensor = (weight.name or "" if weight else ""), constant_of(weight)
        key = (name, transposed, transposed and not as_columns)
        if key not in self._converted:
            self._converted[key] = self._convert(name, tensor, *key[1:])
        return self._converted[key]

    def _convert(
        self, name: str, tensor: ir.TensorProtocol, transposed: bool, as_rows: bool
    ) -> tuple[ir.Value, ir.Value]:
        def columns() -> Float32:
            array: Float32 = tensor.numpy()
            return array.T if transposed else array

        try:
            scales = channel_scales(columns())
        except ValueError as error:
            raise ArtifactError(
                f"weight {name!r} cannot be INT8: {error}",
                hint="export weights that are all finite",
            ) from error

        def values() -> Int8:
            integers = to_int8(columns(), scales)
            return np.ascontiguousarray(integers.T if as_rows else integers)

        k, n = columns().shape
        shape = ir.Shape((n, k) if as_rows else (k, n))
        weight = add_lazy_constant(
            self._graph, self._names(f"{name}_int8"), ir.DataType.INT8, shape, values
        )
        return weight, add_constant(self._graph, self._names(f"{name}_scale"), scales)

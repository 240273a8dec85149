"""What INT8 narrows: products with a constant matrix; and the names of what takes their place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.errors import ArtifactError, UsageError, nearest
from vit_export.graph.half.convert import check_fp32_source
from vit_export.graph.int8.weights import Float32, Int8, channel_scales, to_int8
from vit_export.graph.io import open_graph
from vit_export.graph.layers import layer_of, weight_of


@dataclass(frozen=True)
class Plan:
    """A float32 graph, and which of its nodes become INT8.

    Attributes:
        model: The graph.
        planned: MatMul and Gemm nodes with a constant matrix.
        narrowed: Those of them that are not kept in float32.
    """

    model: ir.Model
    planned: tuple[ir.Node, ...]
    narrowed: tuple[ir.Node, ...]


def plan(source: Path, keep: Collection[str] = ()) -> Plan:
    """Open an artifact and choose the nodes.

    Args:
        source: An .onnx file in float32.
        keep: Layers that stay in float32, e.g. `"blocks.3.mlp.fc2"`.

    Raises:
        ArtifactError: The source is damaged, is not float32, or has no product to narrow.
        UsageError: A layer to keep is not among those planned.
    """
    check_fp32_source(OnnxFile.read(source))
    model = open_graph(source)
    planned = tuple(node for node in model.graph if is_planned(node))
    if not planned:
        raise ArtifactError(
            f"{source}: has no MatMul or Gemm with a constant float32 matrix, so nothing in it "
            "can be INT8; fp16 may suit it"
        )
    layers = {layer_of(node) for node in planned}
    for layer in keep:
        if layer not in layers:
            raise UsageError(
                f"cannot keep {layer!r} in fp32: {source.name} has no such layer among the "
                f"{len(layers)} that INT8 narrows{nearest(layer, sorted(layers))}"
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
    """Every tensor that a planned product reads, each once: what `calibrate` has to watch.

    Raises:
        ArtifactError: The source is damaged, is not float32, or has no product to narrow.
    """
    return list(dict.fromkeys(input_name(node) for node in plan(source).planned))


def planned_layers(source: Path) -> list[str]:
    """Layers of the planned products, in the order of the graph, each once.

    Raises:
        ArtifactError: The source is damaged, is not float32, or has no product to narrow.
    """
    return list(dict.fromkeys(layer_of(node) for node in plan(source).planned))


def input_name(node: ir.Node) -> str:
    """Name of the tensor that a product multiplies with its weight."""
    value = node.inputs[0]
    return "" if value is None else value.name or ""


def is_transposed(node: ir.Node) -> bool:
    """Whether the weight lies as (N, K)."""
    return bool(node.attributes.get_int("transB", 0))


class Weights:
    """INT8 weights of a graph and their scales, each stored once however many nodes share it.

    The values are computed when they are written, one weight at a time.
    """

    def __init__(self, graph: ir.Graph, names: Names) -> None:
        self._graph, self._names = graph, names
        self._made: dict[tuple[str, bool, bool], tuple[ir.Value, ir.Value]] = {}

    def of(self, node: ir.Node, *, as_columns: bool) -> tuple[ir.Value, ir.Value]:
        """The INT8 weight of a product, and its scales float32 (N,).

        Args:
            node: A planned node.
            as_columns: Whether the weight has to lie as (K, N); else it lies as it did.

        Raises:
            ArtifactError: A weight is not finite.
        """
        weight = weight_of(node)
        if weight is None or weight.const_value is None:
            raise ValueError(f"{node.name} has no constant weight")
        transposed = is_transposed(node)
        key = (weight.name or "", transposed, transposed and not as_columns)
        if key not in self._made:
            self._made[key] = self._make(weight.name or "", weight.const_value, *key[1:])
        return self._made[key]

    def _make(
        self, name: str, tensor: ir.TensorProtocol, transposed: bool, as_rows: bool
    ) -> tuple[ir.Value, ir.Value]:
        def columns() -> Float32:
            array: Float32 = tensor.numpy()
            return array.T if transposed else array

        try:
            scales = channel_scales(columns())
        except ValueError as error:
            raise ArtifactError(
                f"weight {name!r} cannot be INT8: {error}; export sound weights"
            ) from error

        def values() -> Int8:
            found = to_int8(columns(), scales)
            return np.ascontiguousarray(found.T if as_rows else found)

        rows, count = columns().shape
        shape = ir.Shape((count, rows) if as_rows else (rows, count))
        return (
            lazy_initializer(self._graph, self._names(f"{name}_int8"), ir.DataType.INT8, shape,
                             values),
            initializer(self._graph, self._names(f"{name}_scale"), scales),
        )  # fmt: skip


def lazy_initializer(
    graph: ir.Graph,
    name: str,
    dtype: ir.DataType,
    shape: ir.Shape,
    values: Callable[[], Int8 | Float32],
) -> ir.Value:
    """Add a constant that is computed when it is written."""
    tensor = ir.LazyTensor(lambda: ir.Tensor(values(), name=name), dtype, shape, name=name)
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=shape, const_value=tensor)
    graph.register_initializer(value)
    return value


def initializer(graph: ir.Graph, name: str, array: Int8 | Float32) -> ir.Value:
    """Add a constant."""
    tensor = ir.Tensor(array, name=name)
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor
    )
    graph.register_initializer(value)
    return value


def drop_unread(graph: ir.Graph, values: Iterable[ir.Value]) -> None:
    """Remove those of the constants that no node reads any more."""
    for value in values:
        if not value.uses() and not value.is_graph_output():
            graph.initializers.pop(value.name or "", None)


class Names:
    """Gives names that no node or tensor of a graph has: `name`, else `name_2`, ..."""

    def __init__(self, graph: ir.Graph) -> None:
        self._taken = {value.name for value in (*graph.inputs, *graph.initializers.values())}
        for node in graph:
            self._taken |= {node.name, *(value.name for value in node.outputs)}

    def __call__(self, name: str) -> str:
        """A free name, taken from now on."""
        found, number = name, 2
        while found in self._taken:
            found, number = f"{name}_{number}", number + 1
        self._taken.add(found)
        return found

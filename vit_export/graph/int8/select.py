"""Choose the nodes that become INT8, products with a constant matrix, and convert their weights."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx_ir as ir

from vit_export.artifact.manifest import Conversion
from vit_export.errors import ArtifactError
from vit_export.graph.builder import (
    add_constant,
    constant_of,
    lazy_tensor,
    remove_unread_constants,
)
from vit_export.graph.int8.weights import Float32, channel_scales, to_int8
from vit_export.graph.io import open_fp32_graph, save_graph
from vit_export.graph.layers import layer_of, weight_of


class Int8Conversion:
    """A float32 graph while products with a constant matrix are replaced by INT8 ones.

    `planned` are the nodes that INT8 can convert; `narrowed` those whose layer is not in `keep`.

    Raises:
        ArtifactError: The source is damaged or was converted already, has no such node, or a weight
            to convert is not finite.
    """

    def __init__(self, source: Path, keep: Collection[str] = ()) -> None:
        self._model = open_fp32_graph(source)
        self.graph = self._model.graph
        values = ir.convenience.create_value_mapping(self.graph)
        self._taken_names = {*values, *(node.name for node in self.graph)}
        self._weights: dict[tuple[str, bool], tuple[ir.Value, ir.Value]] = {}
        self.planned = [node for node in self.graph if is_planned(node)]
        if not self.planned:
            raise ArtifactError(
                f"{source}: has no MatMul or Gemm with a constant float32 matrix, so nothing in it "
                "can be INT8",
                hint="convert it to fp16",
            )
        self.narrowed = [node for node in self.planned if layer_of(node) not in keep]

    def weight(self, node: ir.Node) -> tuple[ir.Value, ir.Value]:
        """Return the INT8 weight of a planned node (K, N), and its scales float32 (N,).

        Nodes that share a weight share its INT8 form. Its values are computed when the file is
        written, one weight at a time.
        """
        tensor, transposed = constant_of(node.inputs[1]), is_transposed(node)
        name = tensor.name or ""
        if (name, transposed) not in self._weights:

            def columns() -> Float32:
                array: Float32 = tensor.numpy()
                return array.T if transposed else array

            if not np.isfinite(columns()).all():
                raise ArtifactError(
                    f"weight {name!r} cannot be INT8: a value is not finite",
                    hint="export weights that are all finite",
                )
            scales = channel_scales(columns())
            weight = lazy_tensor(
                self.free_name(f"{name}_int8"),
                ir.DataType.INT8,
                columns().shape,
                lambda: to_int8(columns(), scales),
            )
            scale = ir.Tensor(scales, name=self.free_name(f"{name}_scale"))
            self._weights[name, transposed] = (
                add_constant(self.graph, weight),
                add_constant(self.graph, scale),
            )
        return self._weights[name, transposed]

    def insert(
        self, reader: ir.Node, op_type: str, *inputs: ir.Value, suffix: str = "", **attributes: int
    ) -> ir.Value:
        """Insert a node of one output in front of another, named after the layer of that one."""
        name = self.free_name(f"{layer_of(reader)}/{op_type}{suffix}")
        node = ir.node(op_type, inputs, attributes, name=name)
        node.outputs[0].name = name
        self.graph.insert_before(reader, node)
        return node.outputs[0]

    def free_name(self, name: str) -> str:
        """Return a name that no node or tensor has yet: `name`, else `name_2`, `name_3`, ..."""
        free, number = name, 2
        while free in self._taken_names:
            free, number = f"{name}_{number}", number + 1
        self._taken_names.add(free)
        return free

    def write(self, path: Path, *, recipe: str) -> Conversion:
        """Write the graph, its weights to `path` + `.data`, and return the counts of nodes."""
        remove_unread_constants(self.graph)
        save_graph(self._model, path)
        return Conversion(recipe=recipe, planned=len(self.planned), narrowed=len(self.narrowed))


def is_planned(node: ir.Node) -> bool:
    """Whether a node is a plain product `x @ W` (+ bias) with a constant float32 matrix."""
    get_int, get_float = node.attributes.get_int, node.attributes.get_float
    is_gemm = node.op_type == "Gemm" and not get_int("transA", 0)
    is_plain = is_gemm and get_float("alpha", 1.0) == get_float("beta", 1.0) == 1.0
    weight = weight_of(node)
    tensor = weight.const_value if weight is not None else None
    if tensor is None or not (is_plain or node.op_type == "MatMul"):
        return False
    return len(tensor.shape) == 2 and tensor.dtype == ir.DataType.FLOAT


def planned_tensors(source: Path) -> list[str]:
    """Return the tensors that the planned products read, each once: the ones to calibrate."""
    return list(dict.fromkeys(input_of(n).name or "" for n in Int8Conversion(source).planned))


def planned_layers(source: Path) -> list[str]:
    """Return the layers of the planned products, each once."""
    return list(dict.fromkeys(layer_of(node) for node in Int8Conversion(source).planned))


def input_of(node: ir.Node) -> ir.Value:
    """Return the tensor that a product multiplies with its weight."""
    value = node.inputs[0]
    if value is None:
        raise ValueError(f"{node.name} has no input")
    return value


def is_transposed(node: ir.Node) -> bool:
    """Whether the weight is stored as (N, K)."""
    return bool(node.attributes.get_int("transB", 0))

"""Write the blocks of a Vision Transformer as copies of one that was traced.

torch's exporter takes time in proportion to the nodes, and all blocks between the first and the
last have the same ones.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vit_export.errors import ExportError
from vit_export.graph.builder import constant_of, lazy_tensor

BEFORE, TRACED = "blocks.0", "blocks.1"  # the second is repeated
Weights = Mapping[str, NDArray[np.float32]]  # of a block, by the names they have in it


def repeat_block(graph: ir.Graph, traced: Weights, blocks: Sequence[Weights]) -> None:
    """Give the traced block the first weights of `blocks`, and add a copy of it for all others.

    `traced` are the weights that it was traced with. Nodes, values and weights of a copy are named
    after its block, and stand where torch's exporter would have put them.
    """
    inside = (f"{TRACED}.", f"{TRACED}/")
    nodes = [node for node in graph if (node.name or "").startswith(inside)]
    outputs = {value.name: value for value in graph.outputs}
    previous, place = outputs[TRACED], graph.outputs.index(outputs[TRACED])
    readers = [(use.node, use.idx) for use in previous.uses() if use.node not in nodes]
    weights = {graph.initializers[f"{TRACED}.{name}"]: name for name in traced}
    transposed = {
        value: _is_transposed(constant_of(value).numpy(), traced[name], name)
        for value, name in weights.items()
    }

    def fill(value: ir.Value, source: ir.Value, block: Weights) -> None:
        weight = block[weights[source]]
        data = weight.T if transposed[source] else weight
        value.const_value = lazy_tensor(
            value.name or "", ir.DataType.FLOAT, data.shape, lambda: np.ascontiguousarray(data)
        )

    for value in weights:
        fill(value, value, blocks[0])
    end, added = nodes[-1], list[dict[ir.Value | None, ir.Value]]()
    for number, block in enumerate(blocks[1:], start=2):
        copies: dict[ir.Value | None, ir.Value] = {outputs[BEFORE]: previous}
        for source in (*weights, *(value for node in nodes for value in node.outputs)):
            name = (source.name or "").replace(TRACED, f"blocks.{number}", 1)
            copies[source] = ir.Value(name=name, type=source.type, shape=source.shape)
        for source in weights:
            fill(copies[source], source, block)
        copied = [
            ir.Node(
                node.domain,
                node.op_type,
                [copies.get(value, value) for value in node.inputs],
                node.attributes,
                outputs=[copies[value] for value in node.outputs],
                name=(node.name or "").replace(TRACED, f"blocks.{number}", 1),
            )
            for node in nodes
        ]
        graph.insert_after(end, copied)
        end, previous = copied[-1], copies[outputs[TRACED]]
        added.append(copies)
        graph.outputs.insert(place + number - 1, previous)
    for node, index in readers:
        node.replace_input_with(index, previous)
    constants = list(graph.initializers.values())
    graph.initializers.clear()
    for repeated, run in groupby(constants, key=lambda value: value in weights):
        sources = list(run)
        for value in sources:
            graph.register_initializer(value)
        for value in (copies[source] for copies in added if repeated for source in sources):
            graph.register_initializer(value)


def _is_transposed(exported: NDArray[np.float32], traced: NDArray[np.float32], name: str) -> bool:
    """Return whether the exporter transposed a weight; ExportError where it did anything else."""
    if np.array_equal(exported, traced):
        return False
    if np.array_equal(exported, traced.T):
        return True
    raise ExportError(f"torch's exporter changed the weight {name!r} of {TRACED}")

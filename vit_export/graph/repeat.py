"""Trace three blocks of a Vision Transformer, and add the others as copies of the second.

torch's exporter takes time in proportion to the nodes, and all blocks but the first and the last
have the same ones. The second is traced with random weights, so that the exporter cannot merge a
constant of it with an equal one elsewhere; the copies get the real weights.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

import numpy as np
import onnx_ir as ir
from torch import nn

from vit_export.graph.builder import lazy_tensor
from vit_export.model.vit import VisionTransformer
from vit_export.reference.outputs import Outputs

BEFORE, TRACED = "blocks.0", "blocks.1"  # the second is repeated


@contextmanager
def shortened(model: Outputs) -> Iterator[list[nn.Module]]:
    """Shorten a model to its first, second and last block while it is traced.

    Yields all blocks between the first and the last, then the one that is traced in their place.
    The list is empty, and the model whole, where it is of another class or these blocks differ.
    """
    module, taps = model.module, model.taps
    whole = module.blocks if isinstance(module, VisionTransformer) else nn.ModuleList()
    first, *middle, last = whole if len(whole) > 3 else (None, None)
    if len({str(block) for block in middle}) != 1:
        yield []
        return
    traced = copy.deepcopy(middle[0])
    for parameter in traced.parameters():
        nn.init.uniform_(parameter)
    kept = {BEFORE: first, TRACED: traced, taps[-1]: last}
    blocks = nn.Sequential()
    for name, block in kept.items():
        blocks.add_module(name.removeprefix("blocks."), block)
    module.blocks, model.taps = blocks, tuple(kept)
    try:
        yield [*middle, traced]
    finally:
        module.blocks, model.taps = whole, taps


def repeat_block(graph: ir.Graph, blocks: Sequence[nn.Module], traced: nn.Module) -> None:
    """Give the traced block the weights of the first of `blocks`; add a copy for each of the rest.

    Nodes, values and weights of a copy are named after its block.
    """
    nodes = [node for node in graph if (node.name or "").startswith((f"{TRACED}.", f"{TRACED}/"))]
    outputs = {value.name: value for value in graph.outputs}
    previous, place = outputs[TRACED], graph.outputs.index(outputs[TRACED])
    readers = [(use.node, use.idx) for use in previous.uses() if use.node not in nodes]
    random = {name: p.detach().numpy() for name, p in traced.named_parameters(prefix=TRACED)}
    weights = [value for name, value in graph.initializers.items() if name in random]
    transposed = {
        value: not np.array_equal(value.const_value.numpy(), random[value.name])
        for value in weights
    }

    def fill(value: ir.Value, source: ir.Value, block: nn.Module) -> None:
        weight = block.get_parameter(source.name.removeprefix(f"{TRACED}.")).detach().numpy()
        data = weight.T if transposed[source] else weight
        value.const_value = lazy_tensor(
            value.name, ir.DataType.FLOAT, data.shape, lambda: np.ascontiguousarray(data)
        )

    for value in weights:
        fill(value, value, blocks[0])
    end, added = nodes[-1], list[dict[ir.Value, ir.Value]]()
    for number, block in enumerate(blocks[1:], start=2):
        copies = {outputs[BEFORE]: previous}
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
    # in the order of the exporter: block after block
    constants = list(graph.initializers.values())
    graph.initializers.clear()
    for repeated, run in groupby(constants, key=lambda value: value in transposed):
        sources = list(run)
        for value in sources:
            graph.register_initializer(value)
        for value in (copies[source] for copies in added if repeated for source in sources):
            graph.register_initializer(value)


"""Conversions to a narrower precision, with one interface for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vit_export.artifact.manifest import Conversion
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.graph.half.convert import layers_to_narrow, narrow_nodes, to_half
from vit_export.graph.int8.dynamic import quantised_nodes, to_int8_dynamic
from vit_export.graph.int8.select import planned_layers
from vit_export.graph.int8.static import to_int8_static
from vit_export.graph.layers import block_of


@dataclass(frozen=True, kw_only=True)
class Target:
    """A narrower precision, and how to convert to it.

    Attributes:
        precision: e.g. `"fp16"`.
        emulated: Whether a CPU skips roundings of this precision, so that it is measured with
            every operation rounded.
        convert: Called with the source, the file to write, and `keep=`: layers that stay fp32.
        layers: Returns the layers of a source that are converted, in the order of the graph.
        count: Returns the number of converted nodes with weights in a file.
    """

    precision: str
    emulated: bool
    convert: Callable[..., Conversion]
    layers: Callable[[Path], list[str]]
    count: Callable[[OnnxFile], int]


def half_target(precision: str, *, recipe: str = "mixed", half_io: bool = False) -> Target:
    """Return the target FP16 or BF16; see `to_half` for the arguments."""
    return Target(
        precision=precision,
        emulated=True,
        convert=partial(to_half, precision=precision, recipe=recipe, half_io=half_io),
        layers=partial(layers_to_narrow, precision=precision, recipe=recipe),
        count=narrow_nodes,
    )


def int8_target(thresholds: Mapping[str, float] | None = None) -> Target:
    """Return the target INT8.

    Args:
        thresholds: Largest magnitude by tensor, for static INT8; `None` for dynamic INT8.
    """
    if thresholds is None:
        precision, convert = "int8", to_int8_dynamic
    else:
        precision, convert = "int8-static", partial(to_int8_static, thresholds=thresholds)
    return Target(
        precision=precision,
        emulated=False,
        convert=convert,
        layers=planned_layers,
        count=quantised_nodes,
    )


def units_of(layers: Sequence[str], blocks: Sequence[str]) -> dict[str, list[str]]:
    """Group layers by encoder block; a layer outside the blocks is a unit by itself."""
    units: dict[str, list[str]] = {}
    for layer in layers:
        units.setdefault(block_of(layer, blocks) or layer, []).append(layer)
    return units

"""Conversions to a narrower precision, with one interface for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vit_export.artifact.manifest import Conversion
from vit_export.graph.half.convert import layers_to_narrow, to_half
from vit_export.graph.int8.dynamic import to_int8_dynamic
from vit_export.graph.int8.select import planned_layers
from vit_export.graph.int8.static import to_int8_static
from vit_export.quantization.settings import QuantizeSettings


@dataclass(frozen=True, kw_only=True)
class Target:
    """A narrower precision, and how to convert to it."""

    precision: str
    emulated: bool  # a CPU skips roundings of it, so it is measured with every operation rounded
    convert: Callable[..., Conversion]  # (source, file to write, keep=layers that stay fp32)
    layers: Callable[[Path], list[str]]  # converted layers of a source, in the order of the graph


def target_of(settings: QuantizeSettings, thresholds: Mapping[str, float]) -> Target:
    """Return the target of the settings; static INT8 needs the thresholds of `to_int8_static`."""
    precision, recipe = settings.precision, settings.recipe
    if settings.is_half:
        return Target(
            precision=precision,
            emulated=True,
            convert=partial(to_half, precision=precision, recipe=recipe, half_io=settings.half_io),
            layers=partial(layers_to_narrow, precision=precision, recipe=recipe),
        )
    static = precision == "int8-static"
    return Target(
        precision=precision,
        emulated=False,
        convert=partial(to_int8_static, thresholds=thresholds) if static else to_int8_dynamic,
        layers=planned_layers,
    )


def units_of(layers: Sequence[str], blocks: Sequence[str]) -> dict[str, list[str]]:
    """Group layers by encoder block; a layer outside the blocks is a unit by itself."""
    units: dict[str, list[str]] = {}
    for layer in layers:
        inside = (block for block in blocks if f"{layer}.".startswith(f"{block}."))
        units.setdefault(next(inside, layer), []).append(layer)
    return units

"""The fewest layers that must stay wide, so that a gate passes.

Half precision and INT8 usually fail in few places: one block with a massive activation (arXiv
2402.17762), one layer of wide range. Measured first is how much harm each unit (a block, or a
layer outside of the blocks) does when it alone is narrow. Units stay wide in the order of that
harm; how many have to, a bisection finds. Then the same among the layers of those units.

Polygraphy's `debug precision` searches in this way too, by the precision of TensorRT's layers,
which TensorRT 11 no longer has; here the graph itself is what changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vit_export.progress import Progress, silent

# How far an artifact is from its limits when these layers stay wide: up to 1 it passes.
Measure = Callable[[frozenset[str]], float]


@dataclass(frozen=True)
class Sensitivity:
    """What a unit does to the result when it alone is narrow.

    Attributes:
        unit: A block, or a layer.
        harm: Distance from the oracle as a share of what is allowed; infinite for NaN.
    """

    unit: str
    harm: float


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What a search found.

    Attributes:
        keep: Layers that stay wide; `None` where not even all of them helped.
        blocks: Sensitivity of every unit, in the order of the graph.
        layers: Sensitivity of the layers of the units that had to stay wide.
    """

    keep: frozenset[str] | None
    blocks: tuple[Sensitivity, ...]
    layers: tuple[Sensitivity, ...] = ()


def sensitivities(
    units: Mapping[str, Sequence[str]],
    measure: Measure,
    *,
    always: frozenset[str] = frozenset(),
    progress: Progress = silent,
    what: str = "sensitivity",
) -> tuple[Sensitivity, ...]:
    """Measure every unit alone.

    Args:
        units: Layers by unit.
        measure: Called with the layers that stay wide.
        always: Layers that stay wide in every measurement.
        progress: Told about every unit.
        what: Stage that the progress is told.
    """
    every = frozenset(layer for layers in units.values() for layer in layers) | always
    found = []
    for i, (unit, layers) in enumerate(units.items()):
        progress(what, i, len(units))
        found.append(Sensitivity(unit, measure(every - frozenset(layers))))
    return tuple(found)


def repair(
    units: Mapping[str, Sequence[str]], measure: Measure, *, progress: Progress = silent
) -> Repair:
    """Find the fewest layers that must stay wide.

    Args:
        units: Layers by block; a layer outside of the blocks is a unit of its own.
        measure: Called with the layers that stay wide.
        progress: Told about every measurement of the first pass.
    """
    blocks = sensitivities(units, measure, progress=progress, what="error per block")
    chosen = fewest([s.unit for s in _worst_first(blocks)], units, measure)
    if chosen is None:
        return Repair(keep=None, blocks=blocks)
    every = {layer: [layer] for unit in chosen for layer in units[unit]}
    others = frozenset(layer for unit, layers in units.items() if unit not in chosen
                       for layer in layers)  # fmt: skip
    layers = sensitivities(every, measure, always=others, progress=progress, what="error per layer")
    kept = fewest([s.unit for s in _worst_first(layers)], every, measure)
    keep = frozenset(kept) if kept is not None else frozenset(every)
    return Repair(keep=keep, blocks=blocks, layers=layers)


def _worst_first(found: Sequence[Sensitivity]) -> list[Sensitivity]:
    return sorted(found, key=lambda s: -s.harm)


def fewest(
    order: Sequence[str], units: Mapping[str, Sequence[str]], measure: Measure
) -> list[str] | None:
    """The shortest beginning of an order that passes when it stays wide, found by bisection.

    Returns:
        Units; `None` where not even all of them pass.
    """

    def passes(count: int) -> bool:
        return measure(frozenset(layer for unit in order[:count] for layer in units[unit])) <= 1

    if not passes(len(order)):
        return None
    fails, holds = -1, len(order)  # `holds` passes, and nothing at or below `fails` does
    while holds - fails > 1:
        middle = (fails + holds) // 2
        if passes(middle):
            holds = middle
        else:
            fails = middle
    return list(order[:holds])

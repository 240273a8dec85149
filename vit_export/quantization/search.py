"""Search for the layers that must stay fp32, so that the gate passes.

Half precision and INT8 usually fail in few places: one block with a massive activation (arXiv
2402.17762), one layer of wide range. The search first measures the error when one unit (a block,
or a layer outside the blocks) is converted alone. Units stay fp32 in the order of that error, and
a bisection finds how many have to. Then the same for the layers of those units. At the end every
layer that the rest passes without is converted after all, since errors need not add up.

Polygraphy's `debug precision` searches in this way too, by the precision of TensorRT's layers,
which TensorRT 11 no longer has; here the graph itself is changed.
"""

import functools
import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from msgspec import Struct

from vit_export.progress import Progress, silent

LIMIT = 0.95  # largest share of a tolerance in the search: the gate runs other batches as well
# Returns the error when these layers stay fp32, as a multiple of the tolerance.
Measure = Callable[[frozenset[str]], float]


class Sensitivity(Struct, frozen=True, rename={"error_ratio": "harm"}):
    """Error when one unit alone is converted."""

    unit: str  # a block or a layer
    error_ratio: float  # as a multiple of the tolerance, infinite for NaN; `harm` in JSON


@dataclass(frozen=True, kw_only=True)
class Repair:
    """Result of a search."""

    # Layers that stay fp32, and the error ratio when that layer is converted as well; empty where
    # the gate fails even with all layers in fp32.
    keep: Mapping[str, float]
    blocks: tuple[Sensitivity, ...]  # of every unit, in the order of the graph
    layers: tuple[Sensitivity, ...] = ()  # of the layers of the units that had to stay fp32

    def reason(self, layer: str, precision: str) -> str:
        """Return why a layer stays fp32."""
        ratio = {s.unit: s.error_ratio for s in (*self.blocks, *self.layers)}[layer]
        subject = f"alone in {precision}"
        if math.isinf(ratio):
            return f"{subject} it makes the result NaN or infinite"
        if ratio <= LIMIT:
            ratio = self.keep[layer]
            subject = "the search keeps it because, together with the converted layers,"
        allowed = f" (the search allows {LIMIT:g})" if ratio <= 1 else ""
        return f"{subject} its error is {ratio:.3g} times the tolerance{allowed}"


def units_of(layers: Sequence[str], blocks: Sequence[str]) -> dict[str, list[str]]:
    """Group layers by encoder block; a layer outside the blocks is a unit by itself."""
    units: dict[str, list[str]] = {}
    for layer in layers:
        inside = (block for block in blocks if f"{layer}.".startswith(f"{block}."))
        units.setdefault(next(inside, layer), []).append(layer)
    return units


def sensitivities(
    units: Mapping[str, Sequence[str]],
    measure: Measure,
    *,
    fp32: frozenset[str] = frozenset(),
    progress: Progress = silent,
    stage: str = "error per block",
) -> tuple[Sensitivity, ...]:
    """Measure the error of every unit of layers alone, while all others and `fp32` stay fp32."""
    layers = fp32.union(*units.values())
    measured = []
    for i, (unit, own) in enumerate(units.items()):
        progress(stage, i, len(units))
        measured.append(Sensitivity(unit, measure(layers - frozenset(own))))
    return tuple(measured)


def repair(
    units: Mapping[str, Sequence[str]], measure: Measure, *, progress: Progress = silent
) -> Repair:
    """Find layers that must stay fp32, none of which can be left out; see `units_of` for units."""
    measure = functools.cache(measure)
    blocks = sensitivities(units, measure, progress=progress)
    chosen = _shortest_prefix(blocks, units, measure)
    if not chosen:
        return Repair(keep={}, blocks=blocks)
    candidates = {layer: [layer] for unit in chosen for layer in units[unit]}
    everything = frozenset[str]().union(*units.values())
    layers = sensitivities(
        candidates, measure, fp32=everything, progress=progress, stage="error per layer"
    )
    kept = _shortest_prefix(layers, candidates, measure) or list(candidates)
    keep = _without_needless(kept, measure)
    needed = {layer: measure(keep - {layer}) for layer in sorted(keep)}
    return Repair(keep=needed, blocks=blocks, layers=layers)


def _shortest_prefix(
    measured: Sequence[Sensitivity], units: Mapping[str, Sequence[str]], measure: Measure
) -> list[str]:
    """Return the fewest units, those of the largest error first, that pass when they stay fp32.

    Where more units in fp32 give a larger error, fewer than the bisection finds may pass as well.
    The list is empty where not even all units pass.
    """
    order = [s.unit for s in sorted(measured, key=lambda s: -s.error_ratio)]

    def passes(count: int) -> bool:
        return measure(frozenset(layer for unit in order[:count] for layer in units[unit])) <= LIMIT

    if not passes(len(order)):
        return []
    return order[: bisect_left(range(len(order)), True, key=passes)]


def _without_needless(kept: Sequence[str], measure: Measure) -> frozenset[str]:
    """Drop each layer that may be converted too, the last ones first; return the others."""
    keep, before = frozenset(kept), frozenset[str]()
    while keep != before:
        before = keep
        for layer in reversed(kept):
            if layer in keep and measure(keep - {layer}) <= LIMIT:
                keep -= {layer}
    return keep

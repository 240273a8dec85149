"""The search keeps what must be kept, and no more, whatever the harm looks like."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from vit_export.quantization.search import fewest, repair, sensitivities

UNITS = {
    "patch_embed.proj": ["patch_embed.proj"],
    **{f"blocks.{i}": [f"blocks.{i}.{part}" for part in "abc"] for i in range(6)},
    "head": ["head"],
}
LAYERS = [layer for layers in UNITS.values() for layer in layers]
harms = st.lists(st.floats(0, 0.4) | st.just(math.inf), min_size=len(LAYERS), max_size=len(LAYERS))


def additive(harm: dict[str, float]):
    """Harm of narrow layers adds up; an infinite one spoils everything."""

    def measure(keep: frozenset[str]) -> float:
        return sum(value for layer, value in harm.items() if layer not in keep)

    return measure


@given(harms)
def test_what_is_kept_passes_and_one_layer_less_of_the_worst_does_not(values):
    """With harms that add up, the shortest beginning of their order is the fewest there is."""
    harm = dict(zip(LAYERS, values, strict=True))
    measure = additive(harm)
    found = repair(UNITS, measure)
    assert found.keep is not None
    assert measure(found.keep) <= 1
    within = {layer for layer in LAYERS if harm[layer] == math.inf}
    assert within <= found.keep
    if found.keep:
        easiest = min(found.keep, key=harm.__getitem__)
        assert measure(found.keep - {easiest}) > 1


@given(harms)
def test_sensitivity_is_the_harm_of_one_unit_alone(values):
    """Everything else stays wide."""
    harm = dict(zip(LAYERS, values, strict=True))
    for found in sensitivities(UNITS, additive(harm)):
        expected = sum(harm[layer] for layer in UNITS[found.unit])
        assert found.harm == expected or math.isclose(found.harm, expected)


def test_only_the_layer_that_breaks_is_kept_out_of_its_block():
    """Not the block around it."""
    harm = dict.fromkeys(LAYERS, 0.01) | {"blocks.3.b": math.inf}
    found = repair(UNITS, additive(harm))
    assert found.keep == {"blocks.3.b"}
    assert [s.unit for s in found.layers] == UNITS["blocks.3"]


def test_no_search_pretends_to_mend_what_no_layer_causes():
    """Where everything wide still fails, nothing is kept and nobody is told it passed."""
    found = repair(UNITS, lambda keep: 2.0)
    assert found.keep is None
    assert len(found.blocks) == len(UNITS)


def test_a_bisection_measures_about_log2_times():
    """And not once per unit."""
    order = [f"u{i}" for i in range(64)]
    asked = []

    def measure(keep: frozenset[str]) -> float:
        asked.append(keep)
        return 0.0 if len(keep) >= 37 else 2.0

    assert fewest(order, {name: [name] for name in order}, measure) == order[:37]
    assert len(asked) <= 8

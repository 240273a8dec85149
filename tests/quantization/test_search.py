"""The search keeps the layers in fp32 that the gate needs, and no other."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit_export.quantization.search import LIMIT, Repair, Sensitivity, repair, sensitivities

UNITS = {
    "patch_embed.proj": ["patch_embed.proj"],
    **{f"blocks.{i}": [f"blocks.{i}.{part}" for part in "abc"] for i in range(6)},
    "head": ["head"],
}
LAYERS = [layer for layers in UNITS.values() for layer in layers]
errors = st.lists(st.floats(0, 0.4) | st.just(math.inf), min_size=len(LAYERS), max_size=len(LAYERS))


def additive(error: dict[str, float]):
    """Errors of converted layers add up; an infinite one spoils everything."""

    def measure(keep: frozenset[str]) -> float:
        return sum(value for layer, value in error.items() if layer not in keep)

    return measure


@given(errors)
def test_with_errors_that_add_up_the_fewest_layers_are_kept(values):
    """Even the kept layer of the smallest error cannot be converted as well."""
    error = dict(zip(LAYERS, values, strict=True))
    measure = additive(error)
    keep = repair(UNITS, measure).keep
    assert measure(frozenset(keep)) <= LIMIT
    assert {layer for layer in LAYERS if error[layer] == math.inf} <= set(keep)
    if keep:
        easiest = min(keep, key=error.__getitem__)
        assert measure(frozenset(keep) - {easiest}) > LIMIT


@given(st.integers(0, 2**32))
def test_with_any_errors_the_result_passes_and_no_layer_can_be_left_out(seed):
    """A longer prefix may fail where a shorter one passes: errors can cancel out."""

    def measure(keep: frozenset[str]) -> float:
        if len(keep) == len(LAYERS):
            return 0.0
        return random.Random(f"{seed} {sorted(keep)}").choice([0.5, 2.0, 3.0])

    keep = repair(UNITS, measure).keep
    if keep:
        assert measure(frozenset(keep)) <= LIMIT
    for layer, error_ratio in keep.items():
        assert error_ratio == measure(frozenset(keep) - {layer}) > LIMIT


@given(errors)
def test_the_sensitivity_of_a_unit_is_its_error_alone(values):
    """All other units stay fp32."""
    error = dict(zip(LAYERS, values, strict=True))
    for measured in sensitivities(UNITS, additive(error)):
        expected = sum(error[layer] for layer in UNITS[measured.unit])
        assert measured.error_ratio == expected or math.isclose(measured.error_ratio, expected)


def test_only_the_failing_layer_of_a_block_is_kept():
    """Not the block around it."""
    error = dict.fromkeys(LAYERS, 0.01) | {"blocks.3.b": math.inf}
    found = repair(UNITS, additive(error))
    assert set(found.keep) == {"blocks.3.b"}
    assert [s.unit for s in found.layers] == UNITS["blocks.3"]


def test_an_error_that_no_layer_causes_is_not_repaired():
    """With every layer in fp32 it still fails."""
    found = repair(UNITS, lambda keep: 2.0)
    assert found.keep == {}
    assert len(found.blocks) == len(UNITS)


def test_a_bisection_measures_about_log2_times():
    """And not once per unit, beyond the sensitivities."""
    units = {f"u{i}": [f"u{i}"] for i in range(64)}
    measured = set()

    def measure(keep: frozenset[str]) -> float:
        measured.add(keep)
        return 0.01 if len(keep) == 63 else 0.0 if "u0" in keep else 2.0

    assert set(repair(units, measure).keep) == {"u0"}
    assert len(measured) <= 64 + 1 + 8


TOGETHER = "the search keeps it because, together with the converted layers, its error is"


@pytest.mark.parametrize(
    ("alone", "together", "reason"),
    [
        (math.inf, math.inf, "alone in int8 it makes the result NaN or infinite"),
        (1.25, 1.3, "alone in int8 its error is 1.25 times the tolerance"),
        (0.031, 1.3, f"{TOGETHER} 1.3 times the tolerance"),
        (0.031, 0.97, f"{TOGETHER} 0.97 times the tolerance (the search allows 0.95)"),
    ],
)
def test_the_reason_for_a_kept_layer_is_true(alone, together, reason):
    """A layer that is good enough alone is kept for what it adds to the others."""
    found = Repair(keep={"head": together}, blocks=(Sensitivity("head", alone),))
    assert found.reason("head", "int8") == reason

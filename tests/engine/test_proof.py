"""The precision that was asked for, or an error."""

from __future__ import annotations

import json

import pytest

from vit_export.engine.proof import inspector_types, prove_engine, prove_network, prove_plan
from vit_export.engine.source import Weights
from vit_export.errors import EngineError

B16 = Weights(stored_bytes=173_000_000, as_fp32_bytes=346_000_000)


def test_a_network_in_the_precision_asked_for_passes() -> None:
    """All of it, or all but what the conversion kept."""
    prove_network({"HALF": 73}, "fp16", wide_allowed=0, narrow_at_least=50)
    prove_network({"HALF": 72, "FLOAT": 1}, "fp16", wide_allowed=1, narrow_at_least=49)
    prove_network({"INT8": 48, "FLOAT": 25}, "int8", wide_allowed=0, narrow_at_least=48)
    prove_network({"FLOAT": 73}, "fp32", wide_allowed=0, narrow_at_least=1)


@pytest.mark.parametrize(
    ("types", "precision"),
    [
        ({"FLOAT": 73}, "fp16"),
        ({"FLOAT": 73}, "bf16"),
        ({"FLOAT": 73}, "int8"),
        ({"HALF": 72, "FLOAT": 1}, "fp16"),
        ({"HALF": 49}, "fp16"),
        ({"HALF": 73}, "bf16"),
        ({"HALF": 73}, "fp32"),
        ({}, "fp16"),
        ({}, "fp32"),
    ],
)
def test_a_network_of_another_precision_is_refused(types: dict[str, int], precision: str) -> None:
    """Naming what was asked for."""
    with pytest.raises(EngineError, match=f"{precision} was asked for"):
        prove_network(types, precision, wide_allowed=0, narrow_at_least=50)


def test_an_fp32_plan_is_too_heavy_for_fp16() -> None:
    """What TensorRT 11 made of a dropped flag: 111.75 MB instead of 59.82 (rf-detr #1453)."""
    with pytest.raises(EngineError, match="may be an fp32 engine"):
        prove_plan(
            351_000_000, B16, "fp16", products=73, profiles=1, stripped=False, lean_runtime=False
        )
    note = prove_plan(
        178_000_000, B16, "fp16", products=73, profiles=1, stripped=False, lean_runtime=False
    )
    assert "less than the weights alone in fp32" in note


def test_a_narrow_plan_is_too_light_for_fp32() -> None:
    """It cannot hold the weights."""
    wide = Weights(stored_bytes=346_000_000, as_fp32_bytes=346_000_000)
    with pytest.raises(EngineError, match="smaller than its weights"):
        prove_plan(
            178_000_000, wide, "fp32", products=73, profiles=1, stripped=False, lean_runtime=False
        )
    prove_plan(
        351_000_000, wide, "fp32", products=73, profiles=1, stripped=False, lean_runtime=False
    )


def test_where_the_size_shows_nothing_the_note_says_so() -> None:
    """A compact model's kernels outweigh its weights; a stripped plan has none."""
    small = Weights(stored_bytes=1_350_000, as_fp32_bytes=2_700_000)
    note = prove_plan(
        4_900_000, small, "fp16", products=38, profiles=1, stripped=False, lean_runtime=False
    )
    assert "code decides" in note
    assert "shows nothing" in prove_plan(
        1, B16, "fp16", products=73, profiles=1, stripped=True, lean_runtime=False
    )


def test_a_lean_runtime_in_a_plan_is_not_taken_for_fp32_weights() -> None:
    """A version compatible plan holds one; how little fp32 weighs at least still holds."""
    asked = {"products": 73, "profiles": 1, "stripped": False, "lean_runtime": True}
    assert "shows nothing" in prove_plan(351_000_000, B16, "fp16", **asked)
    with pytest.raises(EngineError, match="smaller than its weights"):
        prove_plan(1_000_000, B16, "fp32", **asked)


def test_the_inspectors_types_are_counted_by_its_own_words() -> None:
    """The form that TensorRT documents for detailed verbosity."""
    fp16 = {
        "Name": "x",
        "Outputs": [{"Name": "y", "Format/Datatype": "Row major linear FP16 format"}],
    }
    fp32 = {"Name": "z", "Outputs": [{"Name": "w", "Format/Datatype": "Float"}]}
    types = inspector_types(json.dumps({"Layers": [fp16, fp16, fp32], "Bindings": ["x"]}))
    assert types == {"Row major linear FP16 format": 2, "Float": 1}
    prove_engine(types, "fp16")
    with pytest.raises(EngineError, match="fp16 was asked for, but the engine's layers write 1"):
        prove_engine({"Float": 1}, "fp16")
    with pytest.raises(EngineError, match="names no types"):
        inspector_types(json.dumps({"Layers": ["only a name"]}))

"""An engine has the precision of its settings, or there is an error."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from vit_export.engine.proof import check_network, check_plan_size, inspect_engine
from vit_export.engine.settings import EngineSettings
from vit_export.errors import EngineError
from vit_export.runtime.tensorrt.backend import Backend

B16 = (173_000_000, 346_000_000)  # bytes of the weights in fp16, and in fp32


def test_a_network_may_have_the_fp32_products_that_the_conversion_left() -> None:
    check_network({"HALF": 73}, "fp16", wide_allowed=0, narrow_at_least=50)
    check_network({"HALF": 72, "FLOAT": 1}, "fp16", wide_allowed=1, narrow_at_least=49)
    check_network({"INT8": 48, "FLOAT": 25}, "int8", wide_allowed=0, narrow_at_least=48)
    check_network({"FLOAT": 73}, "fp32", wide_allowed=0, narrow_at_least=1)


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
    with pytest.raises(EngineError, match=f"--precision {precision}, but"):
        check_network(types, precision, wide_allowed=0, narrow_at_least=50)


def size_note(plan_bytes: int, weights: tuple[int, int], **fields: object) -> str:
    """Check a plan of b16, with 73 products in one profile."""
    settings = EngineSettings(**fields)  # type: ignore[arg-type]
    return check_plan_size(plan_bytes, weights, settings, kernels=73)


def test_a_plan_with_fp32_weights_is_too_large_for_fp16() -> None:
    """What TensorRT 11 makes of a dropped flag: 111.75 MB instead of 59.82 (rf-detr #1453)."""
    with pytest.raises(EngineError, match="may be an fp32 engine"):
        size_note(351_000_000, B16)
    assert "less than the weights alone in fp32" in size_note(178_000_000, B16)


def test_a_plan_with_fp16_weights_is_too_small_for_fp32() -> None:
    wide = (346_000_000, 346_000_000)
    with pytest.raises(EngineError, match="smaller than its weights"):
        size_note(178_000_000, wide, precision="fp32")
    assert size_note(351_000_000, wide, precision="fp32") == "351000000 bytes, weights 346000000"


def test_the_note_says_where_the_size_shows_nothing() -> None:
    """The kernels of a small model outweigh its weights; a stripped plan has no weights."""
    small = (1_350_000, 2_700_000)
    assert "mostly code" in size_note(4_900_000, small)
    assert "shows nothing" in size_note(1, B16, strip=True)


def test_the_lean_runtime_of_a_version_compatible_plan_does_not_count_as_weights() -> None:
    """The lower limit of fp32 holds all the same."""
    assert "shows nothing" in size_note(351_000_000, B16, version_compatible=True)
    with pytest.raises(EngineError, match="smaller than its weights"):
        size_note(1_000_000, B16, version_compatible=True, precision="fp32")


def inspected(precision: str, *layers: object) -> dict[str, int]:
    """Check an engine whose inspector describes these layers."""
    text = json.dumps({"Layers": layers, "Bindings": ["x"]})
    inspector = SimpleNamespace(get_engine_information=lambda information: text)
    trt = SimpleNamespace(LayerInformationFormat=SimpleNamespace(JSON=0))
    backend = Backend(name="tensorrt", trt=trt, version="11.4", logger=None)
    engine = SimpleNamespace(create_engine_inspector=lambda: inspector)
    return inspect_engine(backend, engine, precision)


def test_the_types_of_the_inspector_are_counted() -> None:
    """In the form that TensorRT documents for detailed verbosity."""
    fp16 = {
        "Name": "x",
        "Outputs": [{"Name": "y", "Format/Datatype": "Row major linear FP16 format"}],
    }
    fp32 = {"Name": "z", "Outputs": [{"Name": "w", "Format/Datatype": "Float"}]}
    types = inspected("fp16", fp16, fp16, fp32)
    assert types == {"Row major linear FP16 format": 2, "Float": 1}
    assert inspected("fp32", fp32) == {"Float": 1}
    with pytest.raises(EngineError, match="--precision fp16, but the engine's layers write 1"):
        inspected("fp16", fp32)
    with pytest.raises(EngineError, match="lists no types"):
        inspected("fp16", "only a name")

"""Settings that contradict each other are refused before any work is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from vit_export.errors import UsageError
from vit_export.quantization.settings import QuantizeSettings


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"precision": "fp8"}, "did you mean"),
        ({"precision": "fp16", "recipe": "al"}, "did you mean 'all'"),
        ({"precision": "int8", "recipe": "all"}, "--fp16-recipe is for fp16 and bf16"),
        ({"precision": "int8", "half_io": True}, "--fp16-io is for fp16, not for int8"),
        ({"precision": "int8-static"}, "give a folder of them with --calibration DIR"),
        ({"precision": "int8", "smooth": 0.5}, "--smooth needs images"),
        ({"precision": "fp16", "smooth": 0.5, "calibration": Path("x")}, "--smooth is for int8"),
        ({"precision": "int8", "calibration": Path("x")}, "dynamic int8"),
        (
            {"precision": "fp16", "calibration": Path("x")},
            "keeps in fp32 what it would be needed for",
        ),
        ({"precision": "fp16", "max_drop": 0.5}, "hint: add --images DIR"),
        ({"precision": "fp16", "max_drop": -1, "images": Path("x")}, "at least 0"),
        ({"precision": "fp16", "budget": 1.5}, "expected a share of the weights"),
        ({"precision": "int8", "percentile": 0}, "expected above 0, at most 100"),
        ({"precision": "bf16", "half_io": True}, "--fp16-io is for fp16, not for bf16"),
        ({"precision": "fp16", "percentile": 99}, "--percentile is for int8-static"),
        ({"precision": "int8", "method": "max"}, "--calibration-method is for int8-static"),
        (
            {"precision": "int8-static", "calibration": "x", "method": "max", "percentile": 99},
            "not for --calibration-method max",
        ),
        (
            {"precision": "int8", "smooth": 2, "calibration": Path("x")},
            "expected a strength, 0 to 1",
        ),
    ],
)
def test_a_contradiction_names_the_option(fields, message):
    """And what is possible instead."""
    with pytest.raises(UsageError, match=message):
        QuantizeSettings(**fields)


def test_settings_of_one_precision_are_accepted():
    """Each precision with the options that are its own."""
    QuantizeSettings(precision="fp16", recipe="all", calibration=Path("x"), half_io=True)
    QuantizeSettings(precision="int8", smooth=0.5, calibration=Path("x"))
    QuantizeSettings(precision="int8-static", calibration=Path("x"), method="entropy")
    QuantizeSettings(precision="bf16", images=Path("x"), max_drop=0.5, budget=0)

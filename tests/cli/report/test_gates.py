"""Measurements of a gate, and results of exports, as text."""

from __future__ import annotations

import dataclasses

import pytest

from vit_export.artifact.golden import Golden
from vit_export.cli.report.gates import certificate_text, comparison_text, error_text
from vit_export.cli.report.results import export_text
from vit_export.gate.validate import BlockError, Comparison, compare
from vit_export.runtime import load


def test_a_certificate_shows_every_measurement(tiny_export):
    stages = tiny_export.manifest.certificate
    lines = certificate_text(stages).splitlines()
    assert len(lines) == 2 + sum(len(stage.measurements) for stage in stages)
    assert "FAILED" not in certificate_text(stages)


@pytest.fixture(scope="module")
def failed(tiny_export) -> Comparison:
    """A gate that fails, because the images are normalised differently."""
    runner = load(tiny_export.path, provider="cpu").runner
    other = tiny_export.manifest.preprocess.__class__(size=(32, 32), mean=(0.1, 0.2, 0.3))
    return compare(runner, Golden.read(tiny_export.golden), preprocess=other, stage="odd")


def test_a_failed_gate_lists_its_reasons_and_the_blocks_that_diverge(failed):
    text = comparison_text(failed)
    assert "FAILED on cpu: 4 samples, batches 1, 2, 3," in text
    assert "diverges" in text
    assert text.count("\n  - ") == len(failed.stage.reasons)


def test_a_passed_gate_shows_its_verdict(tiny_export):
    text = comparison_text(tiny_export.comparison)
    assert "passed on cpu" in text
    assert "top-1 agrees on 100 % of the golden images" in text


def test_a_block_that_is_not_in_the_graph_has_dashes_for_numbers(failed):
    blocks = (BlockError(name="blocks.0", max_abs=None, tolerance=1e-6),)
    text = comparison_text(Comparison(stage=failed.stage, blocks=blocks))
    (line,) = [line for line in text.splitlines() if line.startswith("blocks.0")]
    assert line.split() == ["blocks.0", "-", "-", "1e-06", "-"]


@pytest.mark.parametrize(
    ("precision", "words"),
    [
        ("fp32", "max|y - y64| 0.5 (tolerance 2, torch float32 0.25)"),
        ("fp16", "max|y - y64| 0.5 (tolerance 2, torch float16 0.25)  cosine 0.999000"),
        ("bf16", "max|y - y64| 0.5 (tolerance 2, torch bfloat16 0.25)  cosine 0.999000"),
        ("int8", "max|y - y64| 0.5  cosine 0.999000"),
    ],
)
def test_an_error_is_shown_beside_torchs_own_in_the_same_precision(tiny_export, precision, words):
    (*_, stage) = tiny_export.manifest.certificate
    measured = stage.replace(
        max_abs=0.5,
        cosine=0.999,
        tolerance=None if precision == "int8" else 2.0,
        baseline_max_abs=None if precision == "int8" else 0.25,
    )
    assert error_text(measured, precision) == words


def test_the_node_count_is_left_out_where_the_simplifier_removed_none(tiny_export):
    assert "nodes" not in export_text(dataclasses.replace(tiny_export, nodes=(65, 65)))


def test_an_export_ends_with_a_closing_line_and_the_next_commands(tiny_export):
    simplified = dataclasses.replace(tiny_export, nodes=(70, 65))
    *_, closing, predict, validate_line = export_text(simplified).splitlines()
    assert closing.startswith(f"{tiny_export.path}  ")
    for part in (
        " kB (70 nodes simplified to 65)",
        " s  ",
        "passed",
        "max|y - y64|",
        "torch float32",
    ):
        assert part in closing
    assert predict == f"next: vit-export predict {tiny_export.path} PHOTO.jpg"
    assert f"vit-export validate {tiny_export.path}" in validate_line

"""Results as people read them, and as every JSON parser reads them."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest

from vit_export.artifact.golden import Golden
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.cli import report
from vit_export.gate.validate import BlockError, Comparison, compare
from vit_export.runtime import load
from vit_export.variants import VARIANTS


@dataclass
class Point:
    """Something to print."""

    x: float
    where: Path
    rows: tuple[object, ...]


def test_json_is_one_line_that_strict_parsers_take():
    """NaN and infinity are null; tuples are lists; paths are text."""
    value = {
        "p": Point(float("nan"), Path("a/b"), (1, float("inf"), {2: -float("inf")})),
        "猫": True,
    }
    line = report.to_json(value)
    assert "\n" not in line

    def refuse(name: str) -> None:
        pytest.fail(f"{name} is no JSON")

    assert json.loads(line, parse_constant=refuse) == {
        "p": {"x": None, "where": "a/b", "rows": [1, None, {"2": None}]}, "猫": True,
    }  # fmt: skip


def test_a_whole_result_is_json(tiny_export):
    """What --json prints."""
    data = json.loads(report.to_json(tiny_export))
    assert data["path"] == str(tiny_export.path)
    assert data["manifest"]["certificate"][-1]["passed"] is True


def test_a_table_is_aligned():
    """Numbers to the right, words to the left, under their headers."""
    text = report.table(
        ("name", "n", "error", ""),
        [("blocks.0", 5, 1.25e-7, "x"), ("a", 12345, None, ""), ("b", 7, 0.5, "")],
    )
    assert text.splitlines() == [
        "name          n     error",
        "--------  -----  --------  -",
        "blocks.0      5  1.25e-07  x",
        "a         12345         -",
        "b             7       0.5",
    ]


def test_a_table_without_rows_has_its_headers():
    """And nothing else."""
    assert report.table(("a", "long"), []) == "a  long\n-  ----"


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (346_300_000, "346.3 MB"), (2.5e9, "2.50 GB")],
)
def test_sizes_are_read_in_powers_of_ten(nbytes, text):
    """As disks and downloads are."""
    assert report.size(int(nbytes)) == text


def test_a_certificate_shows_every_measurement(tiny_export):
    """Each stage, output and batch; then the notes."""
    stages = tiny_export.manifest.certificate
    lines = report.certificate(stages).splitlines()
    assert len(lines) == 2 + sum(len(stage.measurements) for stage in stages)
    assert "FAILED" not in report.certificate(stages)


@pytest.fixture(scope="module")
def failed(tiny_export) -> Comparison:
    """A gate that the artifact does not pass: normalised otherwise."""
    runner = load(tiny_export.path, provider="cpu").runner
    other = tiny_export.manifest.preprocess.__class__(size=(32, 32), mean=(0.1, 0.2, 0.3))
    return compare(runner, Golden.read(tiny_export.golden), preprocess=other, stage="odd")


def test_a_failed_gate_says_so_and_where(failed):
    """Reasons one by one, blocks with what they may differ by."""
    text = report.comparison(failed)
    assert "FAILED on cpu: 8 samples, batches 1, 2, 3, 8" in text
    assert "diverges" in text
    assert text.count("\n  - ") == len(failed.stage.reason.split("; "))


def test_a_gate_that_passed_says_so(tiny_export):
    """With what was measured."""
    text = report.comparison(tiny_export.comparison)
    assert "passed on cpu" in text
    assert "top-1 agrees on 100 %" in text


def test_a_block_that_is_not_in_the_graph_has_no_number(failed):
    """A dash, not zero."""
    blocks = (BlockError(name="blocks.0", max_abs=None, tolerance=1e-6),)
    text = report.comparison(Comparison(stage=failed.stage, blocks=blocks))
    (line,) = [line for line in text.splitlines() if line.startswith("blocks.0")]
    assert line.split() == ["blocks.0", "-", "-", "1e-06", "-"]


def test_an_export_ends_with_what_to_do_next(tiny_export):
    """Path, size, time, measured error, commands."""
    text = report.exported(tiny_export)
    for part in (
        str(tiny_export.path),
        "max|y - y64|",
        "vit-export predict",
        "vit-export validate",
    ):
        assert part in text


def test_predictions_are_listed_by_image(tiny_export, photographs):
    """Scores in percent."""
    top = load(tiny_export.path).classify(photographs[0], top=2)
    lines = report.predictions([("china.jpg", top)]).splitlines()
    assert lines[0] == "china.jpg"
    assert lines[1] == f"  {100 * top[0].score:6.2f} %  {top[0].label}"
    assert len(lines) == 3


def test_every_variant_has_a_line():
    """With its number of parameters."""
    text = report.variants(VARIANTS.values())
    assert len(text.splitlines()) == 22
    assert "86.6M" in next(line for line in text.splitlines() if "vit_base_patch16_224 " in line)


def test_a_file_of_ours_is_described_with_its_manifest(tiny_export):
    """Signature, operators, preparation, gate."""
    text = report.described(OnnxFile.read(tiny_export.path))
    for part in ("pixel_values: float32 (batch_size, 3, 32, 32)", "LayerNormalization", "bicubic",
                 "10: name 0, name 1", "gate        passed"):  # fmt: skip
        assert part in text, part


def test_a_file_of_another_tool_is_described_without(tiny_export, tmp_path):
    """And says what is unknown."""
    model = onnx.load(tiny_export.path)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {"stride": "32"})
    onnx.save(model, tmp_path / "m.onnx")
    text = report.described(OnnxFile.read(tmp_path / "m.onnx"))
    assert "no vit-export manifest" in text
    assert "stride=32" in text


def test_a_golden_file_is_described(tiny_export):
    """Inputs, outputs, blocks."""
    text = report.golden(tiny_export.golden, Golden.read(tiny_export.golden))
    assert "uint8 (8, 32, 32, 3)" in text
    assert "blocks.0, blocks.1, blocks.2" in text
    raw = Golden(inputs={"x": np.ones((1, 2))}, outputs={"y": np.ones((1, 2))}, e32={"y": 0.0})
    assert "not recorded" in report.golden(Path("g.npz"), raw)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_progress_is_a_bar_on_a_terminal_and_a_line_per_stage_elsewhere():
    """A log is not filled with bars."""
    log, terminal = io.StringIO(), Terminal()
    for stream in (log, terminal):
        progress = report.TerminalProgress(stream)
        progress("load")
        progress("torch", 1, 4)
        progress("torch", 4, 4)
        progress.close()
    assert log.getvalue() == "load\ntorch\n"
    shown = terminal.getvalue()
    assert "torch [#####               ] 1/4" in shown
    assert f"[{'#' * 20}] 4/4" in shown
    assert shown.endswith("\r\033[K")

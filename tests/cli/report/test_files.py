"""Contents of files, and the table of variants, as text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from click.testing import CliRunner

from vit_export.artifact.golden import Golden
from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.cli.commands.inspect import inspect
from vit_export.cli.report.files import (
    golden_text,
    onnx_file_text,
    ranges_text,
    variants_text,
)
from vit_export.quantization.activation_ranges import Ranges, TensorRange
from vit_export.variants import FAMILIES, VARIANTS


def test_activation_ranges_are_shown_by_tensor(tmp_path):
    found = TensorRange(np.zeros(2, np.float32))
    found.add(np.array([[-2.0, 0.5], [1.0, 4.0]], np.float32))
    path = tmp_path / "x.ranges.npz"
    Ranges(tensors={"blocks.0": found}, images=8).write(path)
    text = ranges_text(path, Ranges.read(path))
    assert "8 images" in text
    assert text.splitlines()[-1].split() == ["blocks.0", "-2", "4", "4"]
    done = CliRunner().invoke(inspect, [str(path), "--json"])
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "path": str(path),
        "images": 8,
        "tensors": {"blocks.0": {"smallest": -2.0, "largest": 4.0}},
    }


def test_every_variant_has_a_line():
    text = variants_text(FAMILIES)
    assert len(text.splitlines()) == 2 + len(VARIANTS)
    assert "86.6M" in next(line for line in text.splitlines() if "vit_base_patch16_224 " in line)


def test_an_artifact_is_shown_with_its_manifest(tiny_export):
    text = onnx_file_text(OnnxFile.read(tiny_export.path))
    for part in ("pixel_values: float32 (batch_size, 3, 32, 32)", "LayerNormalization", "bicubic",
                 "10: name 0, name 1", "passed"):  # fmt: skip
        assert part in text, part


def test_a_file_of_another_tool_is_shown_with_what_is_missing(tiny_export, tmp_path):
    model = onnx.load(tiny_export.path)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {"stride": "32"})
    onnx.save(model, tmp_path / "m.onnx")
    text = onnx_file_text(OnnxFile.read(tmp_path / "m.onnx"))
    assert "no vit-export manifest" in text
    assert "stride=32" in text


def test_a_golden_file_is_shown_with_inputs_outputs_and_blocks(tiny_export):
    text = golden_text(tiny_export.golden, Golden.read(tiny_export.golden))
    assert "uint8 (4, 32, 32, 3)" in text
    assert "blocks.0, blocks.1, blocks.2" in text
    raw = Golden(inputs={"x": np.ones((1, 2))}, outputs={"y": np.ones((1, 2))}, e32={"y": 0.0})
    assert "not recorded" in golden_text(Path("g.npz"), raw)

"""Our FP16 beside onnxconverter-common's, on the same graph and the same rounding."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from onnxconverter_common import float16

from vit_export.graph.half.convert import to_half
from vit_export.graph.half.emulate import to_rounded


def run(path, x):
    """First output on the CPU, float64."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"pixel_values": x})[0].astype(np.float64)


def test_the_mixed_recipe_is_nearer_to_fp32_than_the_other_converter(tiny_export, tmp_path):
    """With every operation rounded, as a GPU does; the residual stream in fp32 is the reason."""
    x = np.random.default_rng(0).standard_normal((16, 3, 32, 32)).astype(np.float32)
    exact = run(tiny_export.path, x)
    theirs = float16.convert_float_to_float16(onnx.load(tiny_export.path), keep_io_types=True)
    onnx.save(theirs, tmp_path / "theirs.onnx")
    to_half(tiny_export.path, tmp_path / "ours.onnx")
    distances = {}
    for name in ("ours", "theirs"):
        to_rounded(tmp_path / f"{name}.onnx", tmp_path / "rounded.onnx")
        distances[name] = np.abs(run(tmp_path / "rounded.onnx", x) - exact).mean()
    assert 0 < distances["ours"] < distances["theirs"] < 1e-2


def test_no_weight_is_clamped_as_the_other_converter_does(make_model, tmp_path):
    """It turns 1e-8 into 1e-7, ten times as much; ours becomes 0, and is counted."""
    from vit_export.pipeline.export import export

    model = make_model(depth=1)
    model.blocks[0].mlp.fc1.weight.data[0, 0] = 1e-8
    made = export(model, tmp_path / "m.onnx")
    weights = {t.name: t for t in onnx.load(made.path).graph.initializer}
    assert onnx.numpy_helper.to_array(weights["blocks.0.mlp.fc1.weight"])[0, 0] == np.float32(1e-8)
    done = to_half(made.path, tmp_path / "half.onnx")
    assert done.notes[0].startswith("1 of ")

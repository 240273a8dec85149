"""FP16 of this package beside onnxconverter-common's, on the same graph and the same rounding."""

from __future__ import annotations

import numpy as np
import onnx
from onnxconverter_common import float16

from vit_export.graph.half.convert import to_half
from vit_export.graph.half.emulate import to_rounded


def test_the_mixed_recipe_is_nearer_to_fp32(tiny_export, run_ort, tmp_path):
    """With every operation rounded, as on a GPU: the residual stream in fp32 is the reason."""
    x = np.random.default_rng(0).standard_normal((16, 3, 32, 32)).astype(np.float32)
    exact = run_ort(tiny_export.path, x)[0]
    other = float16.convert_float_to_float16(onnx.load(tiny_export.path), keep_io_types=True)
    onnx.save(other, tmp_path / "other.onnx")
    to_half(tiny_export.path, tmp_path / "mixed.onnx")
    errors = {}
    for name in ("mixed", "other"):
        to_rounded(tmp_path / f"{name}.onnx", tmp_path / "rounded.onnx")
        errors[name] = np.abs(run_ort(tmp_path / "rounded.onnx", x)[0] - exact).mean()
    assert 0 < errors["mixed"] < errors["other"] < 1e-2

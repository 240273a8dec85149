"""A trial measures what the gate will measure."""

from __future__ import annotations

import dataclasses

from vit_export.artifact.golden import Golden
from vit_export.graph.half.convert import to_half
from vit_export.quantization.trials import golden_error_ratio
from vit_export.runtime.onnxruntime.runner import OrtRunner


def test_every_image_size_counts(tiny_export, tmp_path):
    """An artifact of dynamic size is only as good as at its worst size."""
    to_half(tiny_export.path, tmp_path / "half.onnx")
    runner = OrtRunner(tmp_path / "half.onnx", provider="cpu")
    manifest = tiny_export.manifest.replace(precision="fp16")
    golden = Golden.read(tiny_export.golden)
    strict = dataclasses.replace(golden, e16=dict.fromkeys(golden.e16, 1e-9))
    good, bad = ((golden, golden), (golden, strict))
    ratios = [
        golden_error_ratio(runner, dataclasses.replace(golden, others=others), manifest)
        for others in (good, bad)
    ]
    assert ratios[0] < 1 < ratios[1]

"""Every kind of artifact can be converted to half precision and to INT8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.onnx_writer import pack
from vit_export.gate.distance import cosine
from vit_export.graph.export import export_module
from vit_export.graph.half.convert import to_half
from vit_export.graph.int8.dynamic import quantised_nodes, to_int8_dynamic
from vit_export.graph.int8.select import Int8Conversion
from vit_export.graph.simplify import simplify
from vit_export.model.vit import VisionTransformer
from vit_export.pipeline.settings import ExportSettings
from vit_export.pipeline.source import load_source

# fields of a config of one block, settings of the export, products with a constant matrix
KINDS = {
    "distilled": ({"distilled": True, "qkv_bias": False}, {"batch": 2}, 6),
    "pre_logits": (
        {"representation_size": 16, "act_layer": "gelu_tanh"},
        {"opset": 18, "external_data": True},
        6,
    ),
    "not simplified": (
        {"global_pool": "avg"},
        {"simplify": False, "outputs": ("logits", "features", "tokens")},
        5,
    ),
    "no head": ({"num_classes": 0}, {"attention": "op"}, 4),
    "dynamic size": ({}, {"dynamic_size": True}, 5),
}


def write_artifact(model: VisionTransformer, settings: ExportSettings, path: Path) -> None:
    """Export, simplify and pack as `export` does, without gates and golden file."""
    source = load_source(model, settings=settings)
    made = export_module(
        source.model,
        path.with_name("exported.onnx"),
        source.inputs,
        opset=settings.opset or (23 if settings.attention == "op" else 20),
        example_sizes=source.example_sizes,
    ).path
    if settings.simplify:
        simplify(made, path.with_name("simplified.onnx"))
        made = path.with_name("simplified.onnx")
    beside = "fp32.onnx.data" if settings.external_data else ""
    outputs = source.outputs
    pack(OnnxFile.read(made), path, metadata={}, outputs=outputs, external_name=beside)


@pytest.mark.parametrize(("fields", "settings", "products"), KINDS.values(), ids=KINDS)
def test_every_kind_of_artifact_is_converted_whole(
    make_model, run_ort, tmp_path, fields, settings, products
):
    """Types are right by onnx's own inference, every product is converted, outputs stay near."""
    source = tmp_path / "fp32.onnx"
    write_artifact(make_model(depth=1, **fields), ExportSettings(**settings), source)
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    expected = run_ort(source, x)
    path = tmp_path / "converted.onnx"
    for recipe in ("mixed", "all"):
        to_half(source, path, recipe=recipe)
        model = onnx.load(path)
        del model.graph.value_info[:]  # what is there could hide a wrong type
        onnx.checker.check_model(model, full_check=True)
        model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
        for y, wanted in zip(run_ort(path, x), expected, strict=True):
            assert np.abs(y - wanted).max() < 1e-2 * np.abs(wanted).max()
        names = {value.name for value in model.graph.value_info}
        assert "blocks.0" in names  # a trace looks for it
    assert len(Int8Conversion(source).planned) == products
    to_int8_dynamic(source, path)
    assert quantised_nodes(OnnxFile.read(path)) == products
    for y, wanted in zip(run_ort(path, x), expected, strict=True):
        assert cosine(*(a.reshape(len(a), -1).astype(float) for a in (y, wanted))) >= 0.999

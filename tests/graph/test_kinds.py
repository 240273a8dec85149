"""Every kind of artifact is exported, and can be converted to half precision and to INT8."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.onnx_writer import pack
from vit_export.artifact.vocabulary import OPSETS
from vit_export.gate.distance import cosine
from vit_export.graph.export import export_module
from vit_export.graph.half.convert import to_half
from vit_export.graph.int8.dynamic import to_int8_dynamic
from vit_export.graph.int8.select import Int8Conversion
from vit_export.graph.layers import converted_nodes
from vit_export.graph.simplify import simplify
from vit_export.pipeline.settings import ExportSettings
from vit_export.pipeline.source import load_source

# fields of a config of one block, settings of the export, products with a constant matrix
KINDS = {
    "distilled": ({"distilled": True, "qkv_bias": False}, {"batch": 1}, 7),
    "pre_logits": (
        {"representation_size": 16, "act_layer": "gelu_tanh"},
        {"opset": 18, "external_data": True},
        7,
    ),
    "no head": ({"num_classes": 0, "global_pool": "avg"}, {"attention": "op"}, 4),
}


@pytest.mark.parametrize(("fields", "options", "products"), KINDS.values(), ids=KINDS)
def test_every_kind_of_model_is_exported_and_converted_whole(
    make_model, run_ort, tmp_path, fields, options, products
):
    """As `export` does it, without gates and golden file."""
    settings, path = ExportSettings(**options), tmp_path / "fp32.onnx"
    loaded = load_source(make_model(depth=1, **fields), settings=settings)
    attention_op = settings.attention == "op"
    raw = export_module(
        loaded.model,
        tmp_path / "exported.onnx",
        loaded.inputs,
        opset=settings.opset or OPSETS[settings.attention],
    ).path
    file = OnnxFile.read(raw)
    assert file.inputs == loaded.inputs  # a fixed batch is fixed
    if attention_op:
        assert (file.opsets[""], file.op_counts["Attention"]) == (23, 1)  # one per block
        assert not {"Softmax", "Shape", "Expand"} & set(file.op_counts)
    simplify(raw, tmp_path / "simplified.onnx")
    simplified = OnnxFile.read(tmp_path / "simplified.onnx")
    pack(
        simplified, path, metadata={}, outputs=loaded.outputs, external_data=settings.external_data
    )
    x = images(1 if settings.batch == 1 else 2)
    with torch.no_grad():
        computed = dict(zip(loaded.model.all_names, loaded.model(torch.from_numpy(x)), strict=True))
    for name, y in zip(loaded.outputs, run_ort(path, x), strict=True):
        np.testing.assert_allclose(y, computed[name].numpy(), atol=2e-5)
    check_conversions(path, run_ort, tmp_path / "converted.onnx", x, products)


def test_an_artifact_of_dynamic_size_is_converted_whole(exported, run_ort, tmp_path):
    """Its positions are resampled in the graph."""
    path = exported(settings=ExportSettings(dynamic_size=True)).path
    check_conversions(path, run_ort, tmp_path / "converted.onnx", images(2), 14)


def test_a_graph_that_is_not_simplified_is_converted_whole(raw_export, run_ort, tmp_path):
    """With tokens as an output."""
    path = raw_export.path
    check_conversions(path, run_ort, tmp_path / "converted.onnx", images(2), 13)


def images(rows: int) -> np.ndarray:
    """Return standard normal images."""
    return np.random.default_rng(0).standard_normal((rows, 3, 32, 32)).astype(np.float32)


def check_conversions(
    source: Path, run_ort: Callable[..., list[np.ndarray]], path: Path, x: np.ndarray, products: int
) -> None:
    """Types are right by onnx's own inference, every product is converted, outputs stay near."""
    expected = run_ort(source, x)
    for recipe in ("mixed", "all"):
        to_half(source, path, recipe=recipe)
        model = onnx.load(path)
        del model.graph.value_info[:]  # what is there could hide a wrong type
        onnx.checker.check_model(model, full_check=True)
        model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
        for y, wanted in zip(run_ort(path, x), expected, strict=True):
            assert np.abs(y - wanted).max() < 1e-2 * np.abs(wanted).max()
        names = {value.name for value in (*model.graph.value_info, *model.graph.output)}
        assert "blocks.0" in names  # a trace looks for it
    assert len(Int8Conversion(source).planned) == products
    to_int8_dynamic(source, path)
    assert converted_nodes(OnnxFile.read(path)) == products
    for y, wanted in zip(run_ort(path, x), expected, strict=True):
        assert cosine(*(a.reshape(len(a), -1).astype(float) for a in (y, wanted))) >= 0.999

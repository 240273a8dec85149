"""What a session leaves behind: a dumped context that carries the manifest."""

from __future__ import annotations

import onnx
import pytest
from onnx import helper

from vit_export.errors import ProviderError
from vit_export.onnxfile import OnnxFile
from vit_export.runtime.session import finish_dump


def test_a_dumped_context_carries_the_manifest(tiny_export, tmp_path):
    """The node is what ONNX Runtime writes: one EPContext around the engine's bytes."""
    file = OnnxFile.read(tiny_export.path)
    x = helper.make_tensor_value_info("pixel_values", 1, ["batch_size", 3, 32, 32])
    y = helper.make_tensor_value_info("logits", 1, ["batch_size", 10])
    node = helper.make_node(
        "EPContext", ["pixel_values"], ["logits"], domain="com.microsoft",
        main_context=1, embed_mode=1, ep_cache_context=b"an engine",
    )  # fmt: skip
    model = helper.make_model(helper.make_graph([node], "g", [x], [y]))
    model.metadata_props.add(key="of", value="another tool")
    path = tmp_path / "context.onnx"
    onnx.save(model, path)
    finish_dump(path, file, "tensorrt")
    assert OnnxFile.read(path).manifest == file.manifest
    assert onnx.load(path).graph == model.graph


def test_a_dump_that_did_not_happen_is_an_error(tiny_export, tmp_path):
    """The provider was asked for it."""
    file = OnnxFile.read(tiny_export.path)
    with pytest.raises(ProviderError, match=r"did not write .*c\.onnx, which was asked for"):
        finish_dump(tmp_path / "c.onnx", file, "tensorrt")

"""What a session leaves behind: a dumped context that carries the manifest."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from vit_export.artifact.onnx_reader import OnnxFile
from vit_export.artifact.onnx_writer import stamp
from vit_export.errors import ProviderError
from vit_export.runtime.onnxruntime import session
from vit_export.runtime.onnxruntime.options import TensorrtOptions
from vit_export.runtime.onnxruntime.session import create_session, finish_dump


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


@pytest.fixture
def provider(monkeypatch, tiny_export) -> dict[str, Any]:
    """A TensorRT that dumps a copy of the model as its context, then is found wanting or not."""
    said: dict[str, Any] = {"refusal": None}

    def session_of(file: OnnxFile, name: str, options: TensorrtOptions, *_: object) -> object:
        shutil.copy(tiny_export.path, options.ep_context)
        stamp(Path(options.ep_context), {"of": "another tool"})
        return said

    def refuse(*_: object) -> None:
        if said["refusal"] is not None:
            raise said["refusal"]

    monkeypatch.setattr(session, "check_wheel_usable", lambda name: None)
    monkeypatch.setattr(session, "_session", session_of)
    monkeypatch.setattr(session, "check_no_fallback", refuse)
    return said


def test_nothing_is_left_of_the_dump_of_a_refused_session(provider, tiny_export, tmp_path):
    """So that the next try does not stumble over it."""
    file = OnnxFile.read(tiny_export.path)
    options = TensorrtOptions(profile=(1, 1, 1), ep_context=tmp_path / "c.onnx")
    provider["refusal"] = ProviderError("3 of its nodes would run on the CPU")
    for _ in range(2):
        with pytest.raises(ProviderError, match="3 of its nodes"):
            create_session(file, "tensorrt", options)
        assert list(tmp_path.iterdir()) == []
    provider["refusal"] = None
    assert create_session(file, "tensorrt", options) is provider
    assert [path.name for path in tmp_path.iterdir()] == ["c.onnx"]
    assert OnnxFile.read(tmp_path / "c.onnx").manifest == file.manifest

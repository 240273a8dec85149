"""Context files of sessions: they carry the manifest, and none is left by a failed session."""

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
from vit_export.runtime.onnxruntime.session import SessionRequest, add_manifest, create_session


def test_a_context_file_carries_the_manifest(tiny_export, tmp_path):
    """As ONNX Runtime writes it: one EPContext node that contains the engine."""
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
    add_manifest(path, file, "tensorrt")
    assert OnnxFile.read(path).manifest == file.manifest
    assert onnx.load(path).graph == model.graph


def test_a_context_file_that_was_not_written_is_an_error(tiny_export, tmp_path):
    """The message names it."""
    file = OnnxFile.read(tiny_export.path)
    with pytest.raises(ProviderError, match=r"did not write .*c\.onnx, the file of ep_context"):
        add_manifest(tmp_path / "c.onnx", file, "tensorrt")


@pytest.fixture
def provider(monkeypatch, tiny_export) -> dict[str, Any]:
    """A provider that writes a copy of the model as its context file, and may be refused."""
    session_made: dict[str, Any] = {"refusal": None}

    def new_session(request: SessionRequest) -> object:
        shutil.copy(tiny_export.path, request.options.ep_context)
        stamp(Path(request.options.ep_context), {"of": "another tool"})
        return session_made

    def refuse(*_: object) -> None:
        if session_made["refusal"] is not None:
            raise session_made["refusal"]

    monkeypatch.setattr(session, "check_wheel_usable", lambda name: None)
    monkeypatch.setattr(session, "_new_session", new_session)
    monkeypatch.setattr(session, "check_no_fallback", refuse)
    return session_made


def test_a_refused_session_leaves_no_context_file(provider, tiny_export, tmp_path):
    """So that another try does not find it."""
    file = OnnxFile.read(tiny_export.path)
    options = TensorrtOptions(profile=(1, 1, 1), ep_context=tmp_path / "c.onnx")
    request = SessionRequest(file=file, provider="tensorrt", options=options)
    provider["refusal"] = ProviderError("3 of its nodes would run on the CPU")
    for _ in range(2):
        with pytest.raises(ProviderError, match="3 of its nodes"):
            create_session(request)
        assert list(tmp_path.iterdir()) == []
    provider["refusal"] = None
    assert create_session(request) is provider
    assert [path.name for path in tmp_path.iterdir()] == ["c.onnx"]
    assert OnnxFile.read(tmp_path / "c.onnx").manifest == file.manifest

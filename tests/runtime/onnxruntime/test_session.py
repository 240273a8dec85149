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
from vit_export.runtime.onnxruntime.session import SessionRequest, create_session


@pytest.fixture
def provider(monkeypatch, tiny_export) -> dict[str, Any]:
    """A provider that writes a context file, or none, and may be refused."""
    session_made: dict[str, Any] = {"refusal": None, "context": tiny_export.path}

    def new_session(request: SessionRequest) -> object:
        if session_made["context"] is not None:
            shutil.copy(session_made["context"], request.options.ep_context)
            stamp(Path(request.options.ep_context), {"of": "another tool"})
        return session_made

    def refuse(*_: object) -> None:
        if session_made["refusal"] is not None:
            raise session_made["refusal"]

    monkeypatch.setattr(session, "check_wheel_usable", lambda name: None)
    monkeypatch.setattr(session, "_new_session", new_session)
    monkeypatch.setattr(session, "check_placement", refuse)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")  # the artifact is fp32
    return session_made


@pytest.fixture
def request_for_context(tiny_export, tmp_path) -> SessionRequest:
    """A request for the context file c.onnx."""
    options = TensorrtOptions(profile=(1, 1, 1), ep_context=tmp_path / "c.onnx")
    file = OnnxFile.read(tiny_export.path)
    return SessionRequest(file=file, provider="tensorrt", options=options)


def test_a_context_file_carries_the_manifest(
    provider, request_for_context, tmp_path, tmp_path_factory
):
    """As ONNX Runtime writes it: one EPContext node that contains the engine."""
    x = helper.make_tensor_value_info("pixel_values", 1, ["batch_size", 3, 32, 32])
    y = helper.make_tensor_value_info("logits", 1, ["batch_size", 10])
    node = helper.make_node(
        "EPContext", ["pixel_values"], ["logits"], domain="com.microsoft",
        main_context=1, embed_mode=1, ep_cache_context=b"an engine",
    )  # fmt: skip
    model = helper.make_model(helper.make_graph([node], "g", [x], [y]))
    provider["context"] = tmp_path_factory.mktemp("built") / "context.onnx"
    onnx.save(model, provider["context"])
    create_session(request_for_context)
    path = tmp_path / "c.onnx"
    assert OnnxFile.read(path).manifest == request_for_context.file.manifest
    assert onnx.load(path).graph == model.graph


def test_a_context_file_that_was_not_written_is_an_error(provider, request_for_context):
    """The message names it."""
    provider["context"] = None
    with pytest.raises(ProviderError, match=r"did not write c\.onnx, the file of ep_context"):
        create_session(request_for_context)


def test_a_refused_session_leaves_no_context_file(provider, request_for_context, tmp_path):
    """So that another try does not find it."""
    provider["refusal"] = ProviderError("3 of its nodes would run on the CPU")
    for _ in range(2):
        with pytest.raises(ProviderError, match="3 of its nodes"):
            create_session(request_for_context)
        assert list(tmp_path.iterdir()) == []
    provider["refusal"] = None
    assert create_session(request_for_context)[0] is provider
    assert [path.name for path in tmp_path.iterdir()] == ["c.onnx"]
    file = OnnxFile.read(tmp_path / "c.onnx")
    assert file.manifest == request_for_context.file.manifest

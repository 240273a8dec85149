"""Providers without an option against TF32 need NVIDIA's variable, which the user sets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vit_export.cli.options import ProviderOptions
from vit_export.errors import ProviderError
from vit_export.runtime import load
from vit_export.runtime.onnxruntime import session
from vit_export.runtime.onnxruntime.options import TF32_VARIABLE, check_tf32
from vit_export.runtime.tensorrt.backend import load_backend

EDGE = Path(__file__).parents[2] / "edge" / "data" / "edge.onnx"


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch):
    """The variable is not set, before and after a test."""
    monkeypatch.delenv(TF32_VARIABLE, raising=False)


@pytest.mark.parametrize("provider", ["tensorrt", "tensorrt-rtx"])
def test_an_fp32_artifact_is_refused_where_it_would_use_tf32(provider):
    """The user sets the variable: an import or a load does not change the environment."""
    with pytest.raises(ProviderError, match="hint: set NVIDIA_TF32_OVERRIDE=0 before the process"):
        check_tf32(provider, "fp32")
    check_tf32(provider, "fp16")
    assert TF32_VARIABLE not in os.environ


@pytest.mark.parametrize("provider", ["cpu", "cuda", "openvino"])
def test_other_providers_need_no_variable(provider):
    """CUDA has an option against TF32."""
    check_tf32(provider, "fp32")


@pytest.mark.parametrize("value", ["0", "1"])
def test_a_variable_that_the_user_has_set_decides(monkeypatch, value):
    """With 1 the user wants TF32, and the gate measures it."""
    monkeypatch.setenv(TF32_VARIABLE, value)
    check_tf32("tensorrt", "fp32")
    assert os.environ[TF32_VARIABLE] == value


@pytest.mark.parametrize("provider", ["tensorrt", "tensorrt-rtx"])
def test_load_checks_tf32_before_it_creates_a_session(provider, monkeypatch):
    """And leaves the environment as it is."""
    monkeypatch.setattr(session, "check_wheel_usable", lambda name: None)
    with pytest.raises(ProviderError, match=f"provider '{provider}' would compute .* in TF32"):
        load(EDGE, provider=provider)
    assert TF32_VARIABLE not in os.environ


@pytest.mark.parametrize(
    ("provider", "value"), [("tensorrt", "0"), ("cuda,tensorrt-rtx", "0"), ("cuda", None)]
)
def test_the_command_line_sets_the_variable_for_its_own_process(provider, value, monkeypatch):
    """Before anything loads CUDA; what the user has set stays."""
    options = ProviderOptions(provider=provider, device=None, trust_host_code=False)
    assert options.providers("x.engine") == provider.split(",")
    assert TF32_VARIABLE not in os.environ
    monkeypatch.setenv(TF32_VARIABLE, "1")
    options.providers("x.onnx")
    assert os.environ[TF32_VARIABLE] == "1"
    monkeypatch.delenv(TF32_VARIABLE)
    options.providers("x.onnx")
    assert os.environ.get(TF32_VARIABLE) == value


def plan(tf32_flag: bool) -> bytes:
    """Build an engine of a small fp32 artifact for an Ada GPU with TensorRT-RTX."""
    backend = load_backend("tensorrt-rtx")
    trt = backend.trt
    builder = trt.Builder(backend.logger)
    network = builder.create_network(0)
    assert trt.OnnxParser(network, backend.logger).parse_from_file(str(EDGE))
    config = builder.create_builder_config()
    sizes = builder.create_optimization_profile()
    sizes.set_shape("pixel_values", (1, 3, 32, 32), (2, 3, 32, 32), (8, 3, 32, 32))
    config.add_optimization_profile(sizes)
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    (config.set_flag if tf32_flag else config.clear_flag)(trt.BuilderFlag.TF32)
    return bytes(builder.build_serialized_network(network, config))


def test_tensorrt_rtx_obeys_the_variable(monkeypatch):
    """Its engine depends on the flag, and with the variable no longer."""
    assert plan(tf32_flag=True) != plan(tf32_flag=False)
    monkeypatch.setenv(TF32_VARIABLE, "0")
    assert plan(tf32_flag=True) == plan(tf32_flag=False)

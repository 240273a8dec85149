"""TF32 is disabled by NVIDIA's variable for providers that have no option against it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vit_export.errors import ProviderError
from vit_export.runtime import load
from vit_export.runtime.onnxruntime import options, session
from vit_export.runtime.onnxruntime.options import TF32_VARIABLE, cuda_is_loaded, disable_tf32
from vit_export.runtime.tensorrt.backend import load_backend

EDGE = Path(__file__).parents[2] / "edge" / "data" / "edge.onnx"
DRIVER_LINE = "7f00-7f01 r-xp 00000000 08:01 12 /usr/lib/x86_64-linux-gnu/libcuda.so.580.65\n"
OTHER_LINE = "7f00-7f01 r-xp 00000000 08:01 12 /venv/nvidia/cu13/lib/libcudart.so.13\n"


@pytest.fixture(autouse=True)
def _no_variable_and_no_cuda(monkeypatch, tmp_path):
    """The variable is not set, before and after a test, and CUDA is not loaded."""
    monkeypatch.setenv(TF32_VARIABLE, "")
    monkeypatch.delenv(TF32_VARIABLE)
    maps(monkeypatch, tmp_path, OTHER_LINE)


def maps(monkeypatch, tmp_path, lines: str) -> None:
    """Pretend that the process has loaded these files."""
    (tmp_path / "maps").write_text(lines)
    monkeypatch.setattr(options, "MAPPED_FILES", tmp_path / "maps")


@pytest.mark.parametrize("provider", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tf32_is_disabled_before_cuda_is_used(provider, precision):
    """Also for the fp32 layers of an fp16 artifact."""
    disable_tf32(provider, precision)
    assert os.environ[TF32_VARIABLE] == "0"


@pytest.mark.parametrize("provider", ["cpu", "cuda"])
def test_a_provider_with_an_option_does_not_change_the_environment(provider):
    """The variable would count for the whole process."""
    disable_tf32(provider, "fp32")
    assert TF32_VARIABLE not in os.environ


def test_after_cuda_is_used_an_fp32_artifact_is_refused(monkeypatch, tmp_path):
    """The variable would be too late; it matters little to narrower artifacts."""
    maps(monkeypatch, tmp_path, OTHER_LINE + DRIVER_LINE)
    disable_tf32("tensorrt", "fp16")
    with pytest.raises(ProviderError, match="start the process with NVIDIA_TF32_OVERRIDE=0"):
        disable_tf32("tensorrt", "fp32")
    assert TF32_VARIABLE not in os.environ


@pytest.mark.parametrize("value", ["0", "1"])
def test_a_variable_that_the_user_has_set_stays(monkeypatch, tmp_path, value):
    """With 1 the user wants TF32."""
    maps(monkeypatch, tmp_path, DRIVER_LINE)
    monkeypatch.setenv(TF32_VARIABLE, value)
    disable_tf32("tensorrt", "fp32")
    assert os.environ[TF32_VARIABLE] == value


def test_cuda_is_in_use_where_the_driver_is_loaded(monkeypatch, tmp_path):
    """Other libraries of CUDA may be loaded unused."""
    assert not cuda_is_loaded()
    maps(monkeypatch, tmp_path, DRIVER_LINE)
    assert cuda_is_loaded()
    monkeypatch.setattr(options, "MAPPED_FILES", tmp_path / "none")
    assert not cuda_is_loaded()


@pytest.mark.parametrize("provider", ["tensorrt", "tensorrt-rtx"])
def test_load_disables_tf32_before_it_loads_a_library(provider, monkeypatch):
    """The step after it loads CUDA and TensorRT."""

    def next_step(provider: str) -> None:
        raise ProviderError(f"{provider}: TF32 {os.environ.get(TF32_VARIABLE)}")

    monkeypatch.setattr(session, "check_wheel_usable", next_step)
    with pytest.raises(ProviderError, match=f"{provider}: TF32 0"):
        load(EDGE, provider=provider)


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

"""TF32 and the providers that have no option against it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vit_export.errors import ProviderError
from vit_export.runtime import load
from vit_export.runtime.onnxruntime import session, tf32
from vit_export.runtime.onnxruntime.tf32 import TF32_VARIABLE, cuda_is_loaded, forbid_tf32
from vit_export.runtime.tensorrt.backend import load_backend

EDGE = Path(__file__).parents[2] / "edge" / "data" / "edge.onnx"
DRIVER_LINE = "7f00-7f01 r-xp 00000000 08:01 12 /usr/lib/x86_64-linux-gnu/libcuda.so.580.65\n"
OTHER_LINE = "7f00-7f01 r-xp 00000000 08:01 12 /venv/nvidia/cu13/lib/libcudart.so.13\n"


@pytest.fixture(autouse=True)
def _nobody_has_said_anything(monkeypatch, tmp_path):
    """No variable, before and after, and no CUDA in the process."""
    monkeypatch.setenv(TF32_VARIABLE, "")
    monkeypatch.delenv(TF32_VARIABLE)
    maps(monkeypatch, tmp_path, OTHER_LINE)


def maps(monkeypatch, tmp_path, lines: str) -> None:
    """Let the process have these files mapped."""
    (tmp_path / "maps").write_text(lines)
    monkeypatch.setattr(tf32, "MAPPED_FILES", tmp_path / "maps")


@pytest.mark.parametrize("provider", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tf32_is_forbidden_before_cuda_is_in_use(provider, precision):
    """By NVIDIA's variable; also for what a narrower artifact keeps in fp32."""
    forbid_tf32(provider, precision)
    assert os.environ[TF32_VARIABLE] == "0"


@pytest.mark.parametrize("provider", ["cpu", "cuda"])
def test_a_provider_with_an_option_of_its_own_leaves_the_environment_alone(provider):
    """`use_tf32` is for one session; a variable is for the whole process."""
    forbid_tf32(provider, "fp32")
    assert TF32_VARIABLE not in os.environ


def test_once_cuda_is_in_use_an_fp32_artifact_is_refused(monkeypatch, tmp_path):
    """The variable may come too late; in a narrower artifact little depends on it."""
    maps(monkeypatch, tmp_path, OTHER_LINE + DRIVER_LINE)
    forbid_tf32("tensorrt", "fp16")
    with pytest.raises(ProviderError, match="start the process with NVIDIA_TF32_OVERRIDE=0"):
        forbid_tf32("tensorrt", "fp32")
    assert TF32_VARIABLE not in os.environ


@pytest.mark.parametrize("value", ["0", "1"])
def test_what_the_user_has_set_stays(monkeypatch, tmp_path, value):
    """With 1 TF32 is wanted."""
    maps(monkeypatch, tmp_path, DRIVER_LINE)
    monkeypatch.setenv(TF32_VARIABLE, value)
    forbid_tf32("tensorrt", "fp32")
    assert os.environ[TF32_VARIABLE] == value


def test_only_the_driver_tells_that_cuda_is_in_use(monkeypatch, tmp_path):
    """Libraries may be mapped unused; where nobody says what is mapped, nothing is known."""
    assert not cuda_is_loaded()
    maps(monkeypatch, tmp_path, DRIVER_LINE)
    assert cuda_is_loaded()
    monkeypatch.setattr(tf32, "MAPPED_FILES", tmp_path / "none")
    assert not cuda_is_loaded()


@pytest.mark.parametrize("provider", ["tensorrt", "tensorrt-rtx"])
def test_a_load_forbids_tf32_before_it_loads_a_library(provider, monkeypatch):
    """The next step loads CUDA's and TensorRT's."""

    def next_step(provider: str) -> None:
        raise ProviderError(f"{provider}: TF32 {os.environ.get(TF32_VARIABLE)}")

    monkeypatch.setattr(session, "check_wheel_usable", next_step)
    with pytest.raises(ProviderError, match=f"{provider}: TF32 0"):
        load(EDGE, provider=provider)


def plan(tf32_flag: bool) -> bytes:
    """What TensorRT-RTX builds of a small fp32 artifact for an Ada GPU."""
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
    """What it builds depends on its flag, and no more with the variable, set while it is loaded."""
    assert plan(tf32_flag=True) != plan(tf32_flag=False)
    monkeypatch.setenv(TF32_VARIABLE, "0")
    assert plan(tf32_flag=True) == plan(tf32_flag=False)

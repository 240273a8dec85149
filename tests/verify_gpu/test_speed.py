"""Speeds, measured with the CPU in the GPU's place."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vit_export import runtime
from vit_export.model.vit import ATTENTION, create_model
from vit_export.variants import get_variant


@pytest.mark.parametrize("variant", ["mnist", "deit_ti", "b32"])
def test_the_products_of_a_variant_are_counted_as_torch_counts_them(variant):
    """Convolution of the patches included; torch's counter sees the real module run."""
    from gpu_checks.speed import flops_per_image

    config = get_variant(variant).replace({"depth": 2})
    model = create_model(config).set_attention("decomposed")  # the counter knows its operators
    x = torch.zeros(1, config.in_chans, *config.image_hw)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(x)
    assert flops_per_image(config) == counter.get_total_flops()


@pytest.fixture
def fp32_artifact(monkeypatch):
    """The fp32 artifact in the place of the float16 one, and of an engine; images stay float32."""
    from gpu_checks import artifacts, speed

    def exported(folder, variant, _):
        return artifacts.exported(folder, variant)

    monkeypatch.setattr(speed, "exported", exported)
    monkeypatch.setattr(speed, "engine_path", lambda folder, *_: folder / "mnist.onnx")
    monkeypatch.setattr(torch.Tensor, "half", torch.Tensor.float)
    monkeypatch.setattr(torch.nn.Module, "half", torch.nn.Module.float)


@pytest.mark.slow
@pytest.mark.usefixtures("on_the_cpu", "fp32_artifact")
def test_the_speed_of_every_candidate_is_measured_alike(tmp_path):
    """On the CPU in the GPU's place; with tensors of torch, and with numpy arrays."""
    from gpu_checks import speed

    for place in (speed.ON_GPU, speed.HOST):
        for measured in (
            speed.torch_eager(tmp_path, "mnist", place),
            speed.onnxruntime(tmp_path, "mnist", "cuda", place),
            speed.onnxruntime(tmp_path, "mnist", "tensorrt", place),
            speed.engine(tmp_path, "mnist", "tensorrt", place),
        ):
            assert measured["cosine"] > 0.999
            assert measured["batch_2_images_per_s"] == pytest.approx(2000 / measured["batch_2_ms"])
            assert measured["tflops"] > 0
    assert speed.onnxruntime_cuda_graph(tmp_path, "mnist", speed.HOST)["cosine"] > 0.999
    assert speed.matmul_peak(tmp_path)["peak_tflops"] > 0


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("place", ["GPU", "host"])
def test_a_candidate_that_computes_something_else_has_no_speed(place):
    """At any of the batch sizes that are timed."""
    from gpu_checks import speed
    from gpu_checks.outcome import FailedError

    model = speed._model(torch, "mnist").half()
    right = speed._torch_run(torch, model, place)
    wrong = {1: right, 2: lambda x: torch.randn(len(x), 10)}
    with pytest.raises(FailedError, match="outputs differ at batch 2: cosine"):
        speed._time(torch, "mnist", wrong.__getitem__, place)


@pytest.mark.usefixtures("on_the_cpu")
def test_torch_is_timed_as_its_users_run_it(tmp_path, monkeypatch):
    """With its fused attention in float16, and compiled for each batch size with CUDA graphs."""
    from gpu_checks import speed

    calls = []

    def compiled(model, **settings):
        assert model.head.weight.dtype is torch.float16
        calls.append((model.blocks[0].attn.attend, settings))
        return model

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(torch.compiler, "reset", lambda: calls.append("reset"))
    speed.torch_compiled(tmp_path, "mnist", speed.ON_GPU)
    one = (ATTENTION["op"], {"mode": "max-autotune", "dynamic": False})
    assert calls == ["reset", one, "reset", one]


def test_the_timed_artifact_takes_and_returns_float16(tmp_path, monkeypatch):
    """As torch in float16 does: no candidate converts types that another one need not convert."""
    from gpu_checks import artifacts, speed

    monkeypatch.setattr(artifacts, "need", lambda *_: None)
    path = artifacts.exported(tmp_path, "edge", speed.PRECISION)
    specs = runtime.load(path, provider="cpu").runner
    assert {spec.dtype for spec in (*specs.inputs, *specs.outputs)} == {"float16"}

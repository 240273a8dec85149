"""Speeds, measured with the CPU in the GPU's place."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

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


@pytest.mark.slow
@pytest.mark.usefixtures("on_the_cpu")
def test_the_speed_of_every_candidate_is_measured_alike(tmp_path, monkeypatch):
    """On the CPU in the GPU's place, and an fp32 artifact in that of the fp16 one."""
    from gpu_checks import artifacts, speed

    monkeypatch.setattr(
        speed, "exported", lambda folder, variant, _: artifacts.exported(folder, variant)
    )
    (tmp_path / "mnist.fp16.tensorrt.engine").touch()
    monkeypatch.setattr(speed, "engine_path", lambda folder, *_: folder / "mnist.onnx")
    for measured in (
        speed.torch_eager(tmp_path, "mnist"),
        speed.onnxruntime(tmp_path, "mnist", "cuda"),
        speed.onnxruntime(tmp_path, "mnist", "tensorrt"),
        speed.engine(tmp_path, "mnist", "tensorrt"),
    ):
        assert measured["cosine"] > 0.999
        assert measured["batch_2_images_per_s"] == pytest.approx(2000 / measured["batch_2_ms"])
        assert measured["tflops"] > 0
    assert speed.matmul_peak(tmp_path)["peak_tflops"] > 0


@pytest.mark.usefixtures("on_the_cpu")
def test_a_candidate_that_computes_something_else_has_no_speed(tmp_path):
    """At any of the batch sizes that are timed."""
    from gpu_checks import speed
    from gpu_checks.outcome import FailedError

    model = speed._model(torch, "mnist")
    wrong = {1: model, 2: lambda x: torch.randn(len(x), 10)}
    with pytest.raises(FailedError, match="outputs differ at batch 2: cosine"):
        speed._time(torch, "mnist", wrong.__getitem__)


@pytest.mark.usefixtures("on_the_cpu")
def test_torch_is_timed_as_its_users_run_it(tmp_path, monkeypatch):
    """With its fused attention, and compiled for each batch size alone."""
    from gpu_checks import speed

    calls = []

    def compiled(model, **settings):
        calls.append((model.blocks[0].attn.attend, settings))
        return model

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(torch.compiler, "reset", lambda: calls.append("reset"))
    speed.torch_compiled(tmp_path, "mnist")
    one = (ATTENTION["op"], {"mode": "max-autotune-no-cudagraphs", "dynamic": False})
    assert calls == ["reset", one, "reset", one]

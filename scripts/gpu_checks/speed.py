"""Speed of the ways to run a model on this GPU, and the share of its measured peak.

Every candidate takes and returns float16, and every run is awaited. Where images and results lie on
the GPU, candidates are compared with each other; where they are numpy arrays in host memory, each
run includes the copies, and candidates are compared with each other again.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_checks.artifacts import exported
from gpu_checks.needs import PROVIDER_NEEDS, need
from gpu_checks.outcome import NotRunError, expect
from gpu_checks.tensorrt import engine_path

DEVICE = "cuda"
ON_GPU, HOST = "GPU", "host"  # where images and results lie
PRECISION = "fp16-io"  # of the artifact: float16 from its input to its outputs
BATCHES = (1, 64)
PEAK_SIZE = 8192  # rows and columns of the two float16 matrices
SMALLEST_COSINE = 0.999  # below it, a candidate computes something else and is not timed
WARMUP_RUNS, TIMED_RUNS, TIMED_S = 10, 20, 2.0

Run = Callable[[Any], Any]


def flops_per_image(config: Any) -> int:
    """Return the floating-point operations of one image's matrix products.

    A multiply-add counts as two, as in "Scaling Vision Transformers" (arXiv 2106.04560);
    normalisation, activation and softmax are left out.
    """
    n, d, hidden = config.num_tokens, config.embed_dim, config.mlp_dim
    rows, columns = config.grid_hw
    patches = 2 * rows * columns * config.in_chans * config.patch_size**2 * d
    projections = 2 * n * d * (3 * d + d + 2 * hidden)
    attention = 2 * 2 * n * n * d
    heads = 2 * d * config.num_classes * (2 if config.distilled else 1)
    return patches + config.depth * (projections + attention) + heads


def matmul_peak(folder: Path) -> dict[str, Any]:
    """Time torch's float16 product of two large square matrices."""
    torch = _torch()
    a, b = (torch.randn(PEAK_SIZE, PEAK_SIZE, device=DEVICE, dtype=torch.float16) for _ in range(2))
    ms = _median_ms(torch, lambda: a @ b)
    return {"matmul_ms": ms, "peak_tflops": 2 * PEAK_SIZE**3 / ms / 1e9}


def torch_eager(folder: Path, variant: str, place: str) -> dict[str, Any]:
    """Time the torch module, with torch's fused attention (`scaled_dot_product_attention`)."""
    torch = _torch()
    model = _model(torch, variant).half()
    return _time(torch, variant, lambda _: _torch_run(torch, model, place), place)


def torch_compiled(folder: Path, variant: str, place: str) -> dict[str, Any]:
    """Time `torch.compile(mode="max-autotune")`, which uses CUDA graphs, once per batch size."""
    torch = _torch()
    model = _model(torch, variant).half()

    def compiled(size: int) -> Run:
        torch.compiler.reset()  # otherwise kernels of one batch size are reused for another
        fast = torch.compile(model, mode="max-autotune", dynamic=False)
        return _torch_run(torch, fast, place)

    return _time(torch, variant, compiled, place)


def onnxruntime(folder: Path, variant: str, provider: str, place: str) -> dict[str, Any]:
    """Time the artifact in ONNX Runtime."""
    torch = _torch()
    PROVIDER_NEEDS[provider]()
    from vit_export.runtime import load
    from vit_export.runtime.onnxruntime.options import TensorrtOptions

    profile = (1, BATCHES[-1], BATCHES[-1])
    options = TensorrtOptions(profile=profile) if provider == "tensorrt" else None
    runner = load(exported(folder, variant, PRECISION), provider=provider, options=options).runner
    return _time(torch, variant, lambda _: _runner_run(torch, runner, place), place)


def onnxruntime_cuda_graph(folder: Path, variant: str, place: str) -> dict[str, Any]:
    """Time the artifact in ONNX Runtime with CUDA graphs, which read arrays in host memory."""
    torch = _torch()
    PROVIDER_NEEDS["cuda"]()
    from vit_export.runtime import load
    from vit_export.runtime.onnxruntime.options import CudaOptions

    path = exported(folder, variant, PRECISION)
    runner = load(path, options=CudaOptions(cuda_graph=True)).runner
    return _time(torch, variant, lambda _: _runner_run(torch, runner, place), place)


def engine(folder: Path, variant: str, backend: str, place: str) -> dict[str, Any]:
    """Time the engine that an earlier check has built."""
    torch = _torch()
    path = engine_path(folder, backend, variant, PRECISION)
    if not path.exists():
        raise NotRunError(f"there is no engine {path.name}: see the check that builds it")
    from vit_export.runtime import load

    runner = load(path).runner
    return _time(torch, variant, lambda _: _runner_run(torch, runner, place), place)


def _torch() -> Any:
    need("torch", "numpy")
    import torch

    if not torch.cuda.is_available():
        raise NotRunError("the installed torch has no CUDA")
    return torch


def _model(torch: Any, variant: str) -> Any:
    from vit_export.model.vit import create_model
    from vit_export.variants import get_variant

    return create_model(get_variant(variant), seed=0).set_attention("op").eval().to(DEVICE)


def _torch_run(torch: Any, model: Run, place: str) -> Run:
    if place == ON_GPU:
        return model
    return lambda x: model(torch.from_numpy(x).to(DEVICE)).cpu().numpy()


def _runner_run(torch: Any, runner: Any, place: str) -> Run:
    name, output = runner.inputs[0].name, runner.outputs[0].name
    if place == ON_GPU:
        return lambda x: torch.from_dlpack(runner.run_on_device({name: x})[output])
    return lambda x: runner.run({name: x})[output]


def _time(torch: Any, variant: str, run_of: Callable[[int], Run], place: str) -> dict[str, Any]:
    """Time a candidate at every batch size, and compare its outputs with torch's in float32.

    Args:
        torch: The module.
        variant: The model's variant.
        run_of: Returns, for a batch size, a function that runs a batch of float16 images.
        place: Where images and results lie: `ON_GPU` or `HOST`.
    """
    from vit_export.variants import get_variant

    config = get_variant(variant)
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False  # the baseline is float32; products use no TF32
    images = torch.randn(BATCHES[-1], config.in_chans, *config.image_hw, device=DEVICE)
    measured: dict[str, Any] = {}
    cosines: list[float] = []
    with torch.inference_mode():
        expected = _model(torch, variant)(images)
        for size in BATCHES:
            run = run_of(size)
            x = images[:size].half().contiguous()
            x = x if place == ON_GPU else x.cpu().numpy()
            result = torch.as_tensor(run(x)).to(DEVICE).float()
            found = torch.nn.functional.cosine_similarity(expected[:size], result)
            cosines.append(found.min().item())
            expect(
                cosines[-1] >= SMALLEST_COSINE,
                f"its outputs differ at batch {size}: cosine {cosines[-1]:.6f}",
            )
            ms = _median_ms(torch, lambda run=run, x=x: run(x))
            measured[f"batch_{size}_ms"] = ms
            measured[f"batch_{size}_images_per_s"] = 1000 * size / ms
    best = max(measured[f"batch_{size}_images_per_s"] for size in BATCHES)
    tflops = best * flops_per_image(config) / 1e12
    return {**measured, "tflops": tflops, "cosine": min(cosines)}


def _median_ms(torch: Any, run: Callable[[], Any]) -> float:
    def once() -> float:
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - start)

    for _ in range(WARMUP_RUNS):
        once()
    times: list[float] = []
    while len(times) < TIMED_RUNS or sum(times) < 1000 * TIMED_S:
        times.append(once())
    return statistics.median(times)

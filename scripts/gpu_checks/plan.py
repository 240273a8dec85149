"""Which checks there are, in the order in which they run."""

from __future__ import annotations

from collections.abc import Sequence

from gpu_checks import cuda, speed, tensorrt
from gpu_checks.outcome import Check

VARIANTS = ("mnist", "ti16", "deit_ti", "b32", "b16")
SPEED_VARIANT = "b16"
PRECISIONS = ("fp32", "fp16")
EXPORT_S = 240  # an artifact may have to be made first


def checks(variants: Sequence[str] = VARIANTS) -> list[Check]:
    """Everything that needs an NVIDIA GPU; what is short and tells most comes first."""
    fast = SPEED_VARIANT
    found = [Check("doctor finds no fault", cuda.doctor)]
    found += [
        Check(f"refusal without a visible GPU: {provider}", cuda.refusal, (provider,))
        for provider in ("cuda", "tensorrt")
    ]
    found += [
        Check("matmul peak, float16", speed.matmul_peak),
        Check("cuda parity edge fp32", cuda.parity, ("edge", "fp32")),
        Check("cuda IO binding without copies", cuda.io_binding),
        Check("cuda graph edge", cuda.cuda_graph, ("edge",)),
        Check("tensorrt parity edge fp32", tensorrt.parity, ("tensorrt", "edge", "fp32")),
        Check("tensorrt engine cache", tensorrt.engine_cache),
        Check("tensorrt context dump", tensorrt.ep_context, ("tensorrt",)),
        Check("tensorrt-rtx parity edge fp32", tensorrt.parity, ("tensorrt-rtx", "edge", "fp32")),
        Check("tensorrt-rtx context dump", tensorrt.ep_context, ("tensorrt-rtx",)),
    ]
    for backend in ("tensorrt", "tensorrt-rtx"):
        arguments = (backend, fast, "fp16")
        name = f"engine {backend} {fast} fp16"
        found.append(Check(name, tensorrt.engine, arguments, timeout_s=EXPORT_S))
    found += [
        Check(f"speed torch eager {fast} fp16", speed.torch_eager, (fast,)),
        Check(f"speed torch.compile {fast} fp16", speed.torch_compiled, (fast,), timeout_s=180),
    ]
    for provider in ("cuda", "tensorrt"):
        name = f"speed onnxruntime {provider} {fast} fp16"
        found.append(Check(name, speed.onnxruntime, (fast, provider), timeout_s=EXPORT_S))
    for backend in ("tensorrt", "tensorrt-rtx"):
        found.append(Check(f"speed engine {backend} {fast} fp16", speed.engine, (fast, backend)))
    found.append(Check(f"cuda graph {fast}", cuda.cuda_graph, (fast,), timeout_s=EXPORT_S))
    for variant in variants:
        for precision in PRECISIONS:
            arguments = (variant, precision)
            name = f"cuda parity {variant} {precision}"
            found.append(Check(name, cuda.parity, arguments, timeout_s=EXPORT_S))
    return found

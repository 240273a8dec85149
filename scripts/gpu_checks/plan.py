"""All checks, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gpu_checks import cuda, engine_runs, speed, tensorrt
from gpu_checks.outcome import Check

VARIANTS = ("mnist", "ti16", "deit_ti", "b32", "b16")
SPEED_VARIANT = "b16"
PROVIDERS = ("cuda", "tensorrt", "tensorrt-rtx")
BACKENDS = ("tensorrt", "tensorrt-rtx")
FLOATS = ("fp32", "fp16", "bf16")
INTEGERS = ("int8-static", "int8")
EXPORT_S = 240  # an artifact may have to be made first
SMALL_BUILD_S = 180  # an engine of the smallest model
RUNS_S = 120  # of an engine that is there
BUILD_S = 480  # an artifact, and an engine of the timed model
SPEED_S = 120
COMPILE_S = 420  # torch tries out kernels for two batch sizes


def checks(variants: Sequence[str] = VARIANTS) -> list[Check]:
    """Return all checks; short and telling ones first."""
    return [
        Check("doctor finds no fault", cuda.doctor),
        *(
            Check(f"refusal without a visible GPU: {provider}", cuda.refusal, (provider,))
            for provider in PROVIDERS
        ),
        Check("matmul peak, float16", speed.matmul_peak),
        *_small(),
        *_engines(),
        *_speeds(SPEED_VARIANT),
        Check(
            f"cuda graph {SPEED_VARIANT}", cuda.cuda_graph, (SPEED_VARIANT,), timeout_s=EXPORT_S,
            runs_artifact=True,
        ),
        *(
            _parity("cuda", variant, precision, EXPORT_S)
            for precision in FLOATS
            for variant in variants
        ),
    ]  # fmt: skip


def _small() -> Iterator[Check]:
    """Return the checks of the smallest artifact."""
    yield from (_parity("cuda", "edge", precision) for precision in FLOATS)
    yield Check("cuda IO binding without copies", cuda.io_binding, runs_artifact=True)
    for provider in ("cuda", "tensorrt"):
        yield Check(
            f"{provider} late tensor",
            cuda.late_tensor,
            (provider,),
            timeout_s=SMALL_BUILD_S,
            runs_artifact=True,
        )
    yield Check("cuda graph edge", cuda.cuda_graph, ("edge",), runs_artifact=True)
    yield Check("tensorrt engine cache", tensorrt.engine_cache, timeout_s=240, runs_artifact=True)
    for provider in BACKENDS:
        yield from (_parity(provider, "edge", precision) for precision in FLOATS)
        yield Check(
            f"{provider} context dump", tensorrt.ep_context, (provider,), runs_artifact=True
        )
    for provider in PROVIDERS:
        yield from (_parity(provider, "edge", precision) for precision in INTEGERS)


def _parity(provider: str, variant: str, precision: str, limit_s: int = SMALL_BUILD_S) -> Check:
    function = cuda.integer_parity if precision in INTEGERS else cuda.parity
    return Check(
        f"{provider} parity {variant} {precision}", function, (provider, variant, precision),
        timeout_s=limit_s, runs_artifact=True,
    )  # fmt: skip


def _engines() -> Iterator[Check]:
    """Return engine builds: every precision of the smallest artifact, and the timed engine."""
    for backend in BACKENDS:
        for variant, precision, limit_s in (
            ("edge", "fp32", SMALL_BUILD_S), ("edge", "fp16", SMALL_BUILD_S),
            ("edge", "bf16", SMALL_BUILD_S), ("edge", "int8", SMALL_BUILD_S),
            (SPEED_VARIANT, speed.PRECISION, BUILD_S),
        ):  # fmt: skip
            yield Check(
                _engine_name(backend, variant, precision), tensorrt.engine,
                (backend, variant, precision), timeout_s=limit_s, runs_artifact=True,
            )  # fmt: skip

    for name, function, arguments, backend in (
        ("runtime cache", engine_runs.runtime_cache, (), "tensorrt-rtx"),
        ("cuda graph capture that fails", engine_runs.failed_capture, (), "tensorrt"),
        *(
            ("memory under threads", engine_runs.memory_under_threads, (backend,), backend)
            for backend in BACKENDS
        ),
    ):
        yield Check(
            f"engine {backend} {name}", function, arguments, timeout_s=RUNS_S, runs_artifact=True,
            after=_engine_name(backend, "edge", "fp32"),
        )  # fmt: skip


def _engine_name(backend: str, variant: str, precision: str) -> str:
    return f"engine {backend} {variant} {precision}"


def _speeds(variant: str) -> Iterator[Check]:
    """Return the timings of one model; `torch.compile` takes longest and comes last."""
    for place in (speed.ON_GPU, speed.HOST):
        yield _speed("torch eager", speed.torch_eager, (variant, place), limit_s=SPEED_S)
        for provider, limit_s in (("cuda", EXPORT_S), ("tensorrt", BUILD_S)):
            yield _speed(
                f"onnxruntime {provider}", speed.onnxruntime, (variant, provider, place),
                limit_s=limit_s, runs_artifact=True,
            )  # fmt: skip
        if place == speed.HOST:
            yield _speed(
                "onnxruntime cuda graph", speed.onnxruntime_cuda_graph, (variant, place),
                limit_s=EXPORT_S, runs_artifact=True,
            )  # fmt: skip
        for backend in BACKENDS:
            yield _speed(
                f"engine {backend}", speed.engine, (variant, backend, place), limit_s=SPEED_S,
                runs_artifact=True, after=_engine_name(backend, variant, speed.PRECISION),
            )  # fmt: skip
    for place in (speed.ON_GPU, speed.HOST):
        yield _speed("torch.compile", speed.torch_compiled, (variant, place), limit_s=COMPILE_S)


def _speed(
    candidate: str,
    function: Callable[..., dict[str, Any]],
    arguments: tuple[str, ...],
    *,
    limit_s: int,
    **fields: Any,
) -> Check:
    name = f"speed {arguments[-1]}: {candidate}"
    return Check(name, function, arguments, timeout_s=limit_s, **fields)

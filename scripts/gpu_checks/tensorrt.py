"""Checks of TensorRT: inside ONNX Runtime, as a plugin, and as engines of its own."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from gpu_checks.artifacts import EDGE, command, exported, validated
from gpu_checks.cuda import need_cuda_wheel
from gpu_checks.outcome import FailedError, NotRunError, expect, need

BATCHES = (1, 8, 64)


def need_tensorrt_provider() -> None:
    """Raise NotRunError unless the TensorRT that ONNX Runtime is linked with is installed."""
    need_cuda_wheel()
    from vit_export.nvidia import tensorrt_conflict

    if conflict := tensorrt_conflict():
        raise NotRunError(conflict)


def need_rtx_gpu() -> None:
    """Raise NotRunError unless TensorRT-RTX supports this GPU."""
    from vit_export.doctor.abilities import supported_by_rtx
    from vit_export.doctor.driver import capability, check_nvidia

    found = capability(check_nvidia(())[0])
    if not supported_by_rtx(found):
        shown = ".".join(map(str, found))
        raise NotRunError(f"TensorRT-RTX does not support compute capability {shown}")


def need_rtx_plugin() -> None:
    """Raise NotRunError unless the plugin is installed and the GPU is one of its own."""
    need("numpy", "onnxruntime", "onnxruntime_ep_nv_tensorrt_rtx")
    need_rtx_gpu()


NEEDS = {"tensorrt": need_tensorrt_provider, "tensorrt-rtx": need_rtx_plugin}


def parity(folder: Path, provider: str, variant: str, precision: str) -> dict[str, Any]:
    """The gate on a TensorRT provider of ONNX Runtime, which builds its engine first."""
    NEEDS[provider]()
    return validated(exported(folder, variant, precision), provider)


def engine_cache(folder: Path) -> dict[str, Any]:
    """A cached engine starts sooner, and one of other weights under the same name is not taken."""
    need_tensorrt_provider()
    import numpy as np

    from vit_export.onnxfile import OnnxFile
    from vit_export.runtime import load
    from vit_export.runtime.provider_options import TensorrtOptions

    other = folder / "other" / EDGE.name
    other.parent.mkdir(exist_ok=True)
    content = bytearray(EDGE.read_bytes())
    head = next(t for t in OnnxFile.read(EDGE).initializers if t.name == "head.bias")
    place = slice(head.offset, head.offset + head.nbytes)
    content[place] = (np.frombuffer(bytes(content[place]), np.float32) + 1).tobytes()
    other.write_bytes(content)
    cache = folder / "engines"
    shutil.rmtree(cache, ignore_errors=True)
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    results, seconds = [], []
    for path in (EDGE, EDGE, other):
        start = time.perf_counter()
        vit = load(path, options=TensorrtOptions(profile=(1, 2, 8), engine_cache=cache))
        results.append(vit.run(x))
        seconds.append(time.perf_counter() - start)
    expect(bool(list(cache.rglob("*.engine"))), "no engine was cached")
    expect(np.array_equal(results[0], results[1]), "the cached engine computes something else")
    shift = float(np.abs(results[2] - results[0] - 1).max())
    expect(shift <= 1e-3, f"the engine of other weights was taken ({shift:.3g} off)")
    return {"first_s": seconds[0], "cached_s": seconds[1]}


def ep_context(folder: Path, provider: str) -> dict[str, Any]:
    """A dumped context loads, computes the same, and says how to prepare an image."""
    NEEDS[provider]()
    import numpy as np

    from vit_export.runtime import load
    from vit_export.runtime.provider_options import TensorrtOptions, TensorrtRtxOptions

    kind = TensorrtOptions if provider == "tensorrt" else TensorrtRtxOptions
    path = folder / f"edge.{provider}.context.onnx"
    path.unlink(missing_ok=True)
    start = time.perf_counter()
    built = load(EDGE, options=kind(profile=(1, 2, 8), ep_context=path))
    middle = time.perf_counter()
    loaded = load(path, provider=provider)
    end = time.perf_counter()
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    expect(np.array_equal(built.run(x), loaded.run(x)), "the context computes something else")
    expect(loaded.preprocess == built.preprocess, "the context lost the manifest")
    return {"build_s": middle - start, "load_s": end - middle}


def engine(folder: Path, backend: str, variant: str, precision: str) -> dict[str, Any]:
    """An engine is built from an fp32 artifact, passes its gate, and passes it again loaded."""
    if backend == "tensorrt":
        need("numpy", "tensorrt")
    else:
        need("numpy", "tensorrt_rtx")
        need_rtx_gpu()
    path = engine_path(folder, backend, variant, precision)
    batches = ":".join(map(str, BATCHES))
    answer = command(
        "engine", exported(folder, variant), "--backend", backend, "--precision", precision,
        "--batch", batches, "-o", path,
    )  # fmt: skip
    if answer["passed"] is not True:
        raise FailedError(f"the engine was not measured: {answer.get('reason')}")
    hop = command("validate", path)["hop"]
    expect(hop["passed"] is True, f"the gate did not pass: {hop['reason']}")
    return {
        "build_s": answer["seconds"], "size_bytes": answer["size_bytes"],
        "max_abs": hop["max_abs"], "tolerance": hop["tolerance"],
    }  # fmt: skip


def engine_path(folder: Path, backend: str, variant: str, precision: str) -> Path:
    """Where `engine` leaves the engine for the check of its speed."""
    return folder / f"{variant}.{precision}.{backend}.engine"

"""Checks of TensorRT: as a provider of ONNX Runtime, as a plugin, and as engines."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from gpu_checks.artifacts import EDGE, command, exported
from gpu_checks.needs import BACKEND_NEEDS, PROVIDER_NEEDS, need, need_kernels_for
from gpu_checks.outcome import FailedError, expect

BATCHES = (1, 8, 64)
CACHED_SHARE = 0.5  # of the time of a build, in which a cached engine must start
NARROWED = ("fp16", "bf16")  # precisions whose engines are built from an fp32 artifact
SOURCE = {"int8": "int8-static", "fp16-io": "fp16-io"}  # others are built from fp32 artifacts


def engine_cache(folder: Path) -> dict[str, Any]:
    """Check that a cached engine starts sooner, and is not used for other weights."""
    PROVIDER_NEEDS["tensorrt"]()
    import numpy as np

    from vit_export.artifact.onnx_reader import OnnxFile
    from vit_export.runtime import load
    from vit_export.runtime.onnxruntime.options import TensorrtOptions

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
    profile = (1, 2, 8)
    load(EDGE, options=TensorrtOptions(profile=profile)).run(x)  # loads libraries, untimed
    results, seconds, plans = [], [], []
    for path in (EDGE, EDGE, other):
        start = time.perf_counter()
        vit = load(path, options=TensorrtOptions(profile=profile, engine_cache=cache))
        results.append(vit.run(x))
        seconds.append(time.perf_counter() - start)
        plans.append({plan: plan.stat().st_mtime_ns for plan in cache.rglob("*.engine")})
    expect(bool(plans[0]), "no engine was cached")
    expect(plans[0] == plans[1], "the second load wrote an engine again")
    expect(
        seconds[1] <= CACHED_SHARE * seconds[0],
        f"the second load took {seconds[1]:.2f} s, the first {seconds[0]:.2f} s with its build",
    )
    expect(np.array_equal(results[0], results[1]), "the cached engine gives other outputs")
    shift = float(np.abs(results[2] - results[0] - 1).max())
    expect(shift <= 1e-3, f"the engine of other weights was taken ({shift:.3g} off)")
    return {"first_s": seconds[0], "cached_s": seconds[1]}


def ep_context(folder: Path, provider: str) -> dict[str, Any]:
    """Check that a dumped context loads, gives the same outputs, and keeps the manifest."""
    PROVIDER_NEEDS[provider]()
    import numpy as np

    from vit_export.runtime import load
    from vit_export.runtime.onnxruntime.options import TensorrtOptions, TensorrtRtxOptions

    kind = TensorrtOptions if provider == "tensorrt" else TensorrtRtxOptions
    path = folder / f"edge.{provider}.context.onnx"
    path.unlink(missing_ok=True)
    start = time.perf_counter()
    built = load(EDGE, options=kind(profile=(1, 2, 8), ep_context=path))
    middle = time.perf_counter()
    loaded = load(path, provider=provider)
    end = time.perf_counter()
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    expect(np.array_equal(built.run(x), loaded.run(x)), "the context gives other outputs")
    expect(loaded.preprocess == built.preprocess, "the context lost the manifest")
    return {"build_s": middle - start, "load_s": end - middle}


def engine(folder: Path, backend: str, variant: str, precision: str) -> dict[str, Any]:
    """Check that an engine is built from an artifact, and passes its gate, also when loaded."""
    BACKEND_NEEDS[backend]()
    need_kernels_for(precision)
    if precision in NARROWED:
        need("onnx")
    source = exported(folder, variant, SOURCE.get(precision, "fp32"))
    path = engine_path(folder, backend, variant, precision)
    batches = ":".join(map(str, BATCHES))
    answer = command(
        "engine", source, "--backend", backend, "--precision", precision.removesuffix("-io"),
        "--batch", batches, "-o", path,
    )  # fmt: skip
    if answer["passed"] is not True:
        raise FailedError(f"the engine was not measured: {answer.get('reason')}")
    stage = command("validate", path)["hop"]
    expect(stage["passed"] is True, f"the gate did not pass: {stage['reason']}")
    proof = answer["sidecar"]["proof"]
    return {
        "build_s": answer["seconds"], "size_bytes": answer["size_bytes"],
        "max_abs": stage["max_abs"], "tolerance": stage["tolerance"],
        "network": proof["network"], "inspector": proof["engine"],
        "warnings": "; ".join(proof["warnings"]) or "none",
    }  # fmt: skip


def engine_path(folder: Path, backend: str, variant: str, precision: str) -> Path:
    """Return the path of an engine that `engine` builds."""
    return folder / f"{variant}.{precision}.{backend}.engine"
